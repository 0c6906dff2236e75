//! Build version 2 files field by field. A valid one must open and contain what was put into it; one with mutations, under
//! correct checksums, must be refused or keep the rules of the format.
#![no_main]

use std::collections::BTreeMap;

use apr_format::{
    Dtype,
    internal::{
        v2::{align, header::Header, read},
        verify,
    },
};
use apr_format_fuzz::{Number, check, on_this_thread, put, round_trip, sign, size, stored};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    entries: BTreeMap<Name<'a>, Entry>,
    metadata: Json<'a>,
    /// Repeated over the data.
    data: &'a [u8],
    footer: bool,
    mutations: Vec<Mutation>,
}

#[derive(Debug, Arbitrary, PartialEq, Eq, PartialOrd, Ord)]
enum Name<'a> {
    Short(u8),
    Head,
    Embedding,
    Any(&'a str),
}

#[derive(Debug, Arbitrary)]
struct Entry {
    id: u8,
    dims: Vec<u8>,
    flat: bool,
    /// Size of the unused space before the tensor, in units of 64 bytes.
    gap: u8,
}

#[derive(Debug, Arbitrary)]
enum Json<'a> {
    Empty,
    Object(BTreeMap<&'a str, Value<'a>>),
    Nested(u8),
    Raw(&'a [u8]),
}

#[derive(Debug, Arbitrary)]
enum Value<'a> {
    Null,
    Number(i64),
    Float(f64),
    Text(&'a str),
    List(Vec<Option<bool>>),
}

#[derive(Debug, Arbitrary)]
enum Mutation {
    Version(u8, u8),
    Flags(u16),
    Count(Number),
    MetadataOffset(Number),
    MetadataSize(Number),
    IndexOffset(Number),
    DataOffset(Number),
    Reserved(u8),
    /// A field of an entry: the number of the entry, then the value.
    NameSize(u8, Number),
    Id(u8, u8),
    Ndim(u8, u8),
    Dim(u8, u8, Number),
    Offset(u8, Number),
    Size(u8, Number),
    /// Any byte, before the checksums are corrected.
    Byte(u16, u8),
    Cut(u16),
    Append(u8),
    /// Any byte, after the checksums were corrected.
    Damage(u16, u8),
}

/// The places of the fields of an entry in the file.
struct Fields {
    name_size: usize,
    id: usize,
    dims: Vec<usize>,
    offset: usize,
}

struct Built {
    bytes: Vec<u8>,
    fields: Vec<Fields>,
    /// Name, dtype, dimensions, and the start and number of the bytes.
    tensors: Vec<(String, Dtype, Vec<u64>, usize, usize)>,
    metadata: Option<String>,
}

fuzz_target!(init: on_this_thread(), |input: Input| {
    let Some(mut built) = build(&input) else { return };
    if input.mutations.is_empty() && built.metadata.is_some() {
        sign_whole(&mut built.bytes, input.footer);
        check_valid(&built, input.footer);
        return;
    }
    mutate(&input.mutations, &mut built);
    if let Some(file) = check(&built.bytes) {
        round_trip(&built.bytes, &file);
    }
});

/// Build a file; `None` if its tensors are too large for a small one.
fn build(input: &Input) -> Option<Built> {
    let (json, is_valid) = input.metadata.text();
    let mut entries = BTreeMap::new();
    for (name, entry) in &input.entries {
        let name = name.text();
        if !name.is_empty() && name.len() <= 256 && !name.contains('\0') {
            entries.entry(name).or_insert(entry);
        }
    }
    let index_offset = size(align(64 + json.len() as u64)?);
    let (mut index, mut fields, mut tensors, mut end) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for (name, entry) in entries {
        let ids = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 14, 30, 128, 129];
        let id = ids[usize::from(entry.id) % ids.len()];
        let dtype = Dtype::from_id(id).expect("an id of the format");
        let dims: Vec<_> = entry.dims.iter().take(8).map(|&dim| u64::from(dim)).collect();
        let nbytes = if entry.flat { dtype.nbytes_flat(&dims) } else { dtype.nbytes(&dims) };
        let nbytes = nbytes.filter(|&nbytes| nbytes < 1 << 14)?;
        let start = end + 64 * usize::from(entry.gap % 4);
        let at = |index: &Vec<u8>| index_offset + index.len();
        let name_size = at(&index);
        index.extend(u16::try_from(name.len()).expect("at most 256").to_le_bytes());
        index.extend(name.as_bytes());
        let id_at = at(&index);
        index.extend([id, u8::try_from(dims.len()).expect("at most 8")]);
        let mut dims_at = Vec::new();
        for dim in &dims {
            dims_at.push(at(&index));
            index.extend(dim.to_le_bytes());
        }
        fields.push(Fields { name_size, id: id_at, dims: dims_at, offset: at(&index) });
        index.extend((start as u64).to_le_bytes());
        index.extend(nbytes.to_le_bytes());
        end = start + size(align(nbytes)?);
        tensors.push((name, dtype, dims, start, size(nbytes)));
    }
    let data_offset = size(align((index_offset + index.len()) as u64)?);
    for (.., start, _) in &mut tensors {
        *start += data_offset;
    }
    let header = Header {
        magic: *b"APR\0",
        version: (2, 0),
        flags: 1 << 10,
        tensor_count: u32::try_from(tensors.len()).ok()?,
        metadata_offset: 64,
        metadata_size: u32::try_from(json.len()).ok()?,
        tensor_index_offset: index_offset as u64,
        data_offset: data_offset as u64,
        checksum: 0,
        reserved: [0; 20],
    };
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend(&json);
    bytes.resize(index_offset, 0);
    bytes.extend(index);
    bytes.resize(data_offset, 0);
    let data = if input.data.is_empty() { &[0] } else { input.data };
    bytes.extend(data.iter().cycle().take(end));
    bytes.extend([0; 4]);
    let metadata = if is_valid { String::from_utf8(json).ok() } else { None };
    Some(Built { bytes, fields, tensors, metadata })
}

fn sign_whole(bytes: &mut Vec<u8>, footer: bool) {
    sign(bytes);
    if !footer {
        bytes.truncate(bytes.len() - 4);
    }
}

fn check_valid(built: &Built, footer: bool) {
    if let Err(error) = read::open(built.bytes.as_slice()) {
        panic!("a valid file is refused: {error}");
    }
    let file = check(&built.bytes).expect("it opens, and its metadata are valid");
    let contents = &file.contents;
    assert_eq!(Some(&file.metadata), built.metadata.as_ref());
    assert_eq!(contents.footer.is_some(), footer);
    assert!(verify::footer(built.bytes.as_slice(), contents).is_ok());
    assert_eq!(contents.tensors.len(), built.tensors.len());
    for (entry, (name, dtype, dims, start, nbytes)) in contents.tensors.entries().zip(&built.tensors) {
        assert_eq!((entry.name, entry.dtype, &entry.dims().collect()), (name.as_str(), *dtype, dims));
        assert_eq!(stored(&built.bytes, &entry), &built.bytes[*start..start + nbytes]);
    }
    round_trip(&built.bytes, &file);
}

/// Apply mutations, correct the checksums, and apply the mutations that damage those.
fn mutate(mutations: &[Mutation], built: &mut Built) {
    let Built { bytes, fields, .. } = built;
    for mutation in mutations {
        mutation.apply(bytes, fields);
    }
    sign(bytes);
    for mutation in mutations {
        if let &Mutation::Damage(at, bits) = mutation
            && !bytes.is_empty()
        {
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= bits;
        }
    }
}

impl Mutation {
    fn apply(&self, bytes: &mut Vec<u8>, fields: &[Fields]) {
        let entry = |which: u8| fields.get(usize::from(which) % fields.len().max(1));
        match self {
            Self::Version(major, minor) => put(bytes, 4, &[*major, *minor]),
            Self::Flags(flags) => put(bytes, 6, &flags.to_le_bytes()),
            Self::Count(number) => number.replace::<4>(bytes, 8),
            Self::MetadataOffset(number) => number.replace::<8>(bytes, 12),
            Self::MetadataSize(number) => number.replace::<4>(bytes, 20),
            Self::IndexOffset(number) => number.replace::<8>(bytes, 24),
            Self::DataOffset(number) => number.replace::<8>(bytes, 32),
            Self::Reserved(byte) => put(bytes, 44, &[*byte]),
            Self::Append(count) => bytes.resize(bytes.len() + usize::from(*count), 0),
            Self::Cut(count) => bytes.truncate(bytes.len().saturating_sub(usize::from(*count))),
            Self::Byte(at, byte) => {
                let at = usize::from(*at) % bytes.len().max(1);
                put(bytes, at, &[*byte]);
            }
            Self::Damage(..) => {}
            Self::NameSize(which, number) => {
                if let Some(entry) = entry(*which) {
                    number.replace::<2>(bytes, entry.name_size);
                }
            }
            Self::Id(which, id) => {
                if let Some(entry) = entry(*which) {
                    put(bytes, entry.id, &[*id]);
                }
            }
            Self::Ndim(which, ndim) => {
                if let Some(entry) = entry(*which) {
                    put(bytes, entry.id + 1, &[*ndim]);
                }
            }
            Self::Dim(which, dim, number) => {
                if let Some(entry) = entry(*which)
                    && let Some(&at) = entry.dims.get(usize::from(*dim))
                {
                    number.replace::<8>(bytes, at);
                }
            }
            Self::Offset(which, number) => {
                if let Some(entry) = entry(*which) {
                    number.replace::<8>(bytes, entry.offset);
                }
            }
            Self::Size(which, number) => {
                if let Some(entry) = entry(*which) {
                    number.replace::<8>(bytes, entry.offset + 8);
                }
            }
        }
    }
}

impl Name<'_> {
    fn text(&self) -> String {
        match self {
            Self::Short(byte) => char::from(b'a' + byte % 26).into(),
            Self::Head => "lm_head.weight".into(),
            Self::Embedding => "model.embed_tokens.weight".into(),
            Self::Any(name) => (*name).into(),
        }
    }
}

impl Json<'_> {
    /// Return the bytes and whether a reader must accept them.
    fn text(&self) -> (Vec<u8>, bool) {
        match self {
            Self::Empty => (b"{}".into(), true),
            Self::Object(entries) => {
                let object: serde_json::Map<_, _> =
                    entries.iter().map(|(key, value)| ((*key).to_owned(), value.json())).collect();
                (serde_json::to_vec(&object).expect("JSON"), true)
            }
            Self::Nested(depth) => {
                let depth = usize::from(*depth % 80) + 1;
                let text = format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
                (text.into(), depth < 64)
            }
            Self::Raw(bytes) => ((*bytes).into(), false),
        }
    }
}

impl Value<'_> {
    fn json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Number(number) => (*number).into(),
            Self::Float(number) => (*number).into(), // null if JSON cannot represent it
            Self::Text(text) => (*text).into(),
            Self::List(items) => items.iter().copied().collect(),
        }
    }
}
