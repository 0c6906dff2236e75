//! Files made field by field: an honest one opens and gives back what was put into it; one with any lies,
//! under right checksums, keeps the format's promises or is refused.
#![no_main]

use std::collections::BTreeMap;

use apr_format::{
    dtype::Dtype,
    v2::{align, header::Header, read, verify},
};
use apr_format_fuzz::{Number, look, on_this_thread, put, round_trip, sign, size, stored};
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
    lies: Vec<Lie>,
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
    /// Steps of 64 bytes before it that no tensor has.
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
enum Lie {
    Version(u8, u8),
    Flags(u16),
    Count(Number),
    MetadataOffset(Number),
    MetadataSize(Number),
    IndexOffset(Number),
    DataOffset(Number),
    Reserved(u8),
    /// Of an entry: which, and what.
    NameSize(u8, Number),
    Id(u8, u8),
    Ndim(u8, u8),
    Dim(u8, u8, Number),
    Offset(u8, Number),
    Size(u8, Number),
    /// Any byte, before the checksums are made right.
    Byte(u16, u8),
    Cut(u16),
    Append(u8),
    /// Checksums as they are not.
    Damage(u16, u8),
}

/// Where the fields of an entry lie in the file.
struct Fields {
    name_size: usize,
    id: usize,
    dims: Vec<usize>,
    offset: usize,
}

struct Made {
    bytes: Vec<u8>,
    fields: Vec<Fields>,
    /// Name, dtype, dims, where the bytes start and how many there are.
    tensors: Vec<(String, Dtype, Vec<u64>, usize, usize)>,
    metadata: Option<String>,
}

fuzz_target!(init: on_this_thread(), |input: Input| {
    let Some(mut made) = make(&input) else { return };
    if input.lies.is_empty() && made.metadata.is_some() {
        sign_whole(&mut made.bytes, input.footer);
        check_honest(&made, input.footer);
        return;
    }
    tell(&input.lies, &mut made);
    if let Some((contents, metadata)) = look(&made.bytes) {
        round_trip(&made.bytes, &contents, &metadata);
    }
});

/// None where the tensors would take more than a small file.
fn make(input: &Input) -> Option<Made> {
    let (json, honest) = input.metadata.text();
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
        let dtype = Dtype::from_id(id).expect("an id of the table");
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
    let metadata = if honest { String::from_utf8(json).ok() } else { None };
    Some(Made { bytes, fields, tensors, metadata })
}

fn sign_whole(bytes: &mut Vec<u8>, footer: bool) {
    sign(bytes);
    if !footer {
        bytes.truncate(bytes.len() - 4);
    }
}

fn check_honest(made: &Made, footer: bool) {
    if let Err(error) = read::open(made.bytes.as_slice()) {
        panic!("an honest file is refused: {error}");
    }
    let (contents, metadata) = look(&made.bytes).expect("it opens, and its metadata are right");
    assert_eq!(Some(&metadata), made.metadata.as_ref());
    assert_eq!(contents.footer.is_some(), footer);
    assert!(verify::footer(made.bytes.as_slice(), &contents).is_ok());
    assert_eq!(contents.tensors.len(), made.tensors.len());
    for (found, (name, dtype, dims, start, nbytes)) in contents.tensors.iter().zip(&made.tensors) {
        assert_eq!((&found.name, found.dtype, &found.dims), (name, *dtype, dims));
        assert_eq!(stored(&made.bytes, &found), &made.bytes[*start..start + nbytes]);
    }
    round_trip(&made.bytes, &contents, &metadata);
}

/// Replace what the lies name and make the checksums right; the last lies are about those.
fn tell(lies: &[Lie], made: &mut Made) {
    let Made { bytes, fields, .. } = made;
    for lie in lies {
        lie.tell(bytes, fields);
    }
    sign(bytes);
    for lie in lies {
        if let &Lie::Damage(at, bits) = lie
            && !bytes.is_empty()
        {
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= bits;
        }
    }
}

impl Lie {
    fn tell(&self, bytes: &mut Vec<u8>, fields: &[Fields]) {
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
    /// The bytes, and whether a reader must take them.
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
            Self::Float(number) => (*number).into(), // null where JSON has no form for it
            Self::Text(text) => (*text).into(),
            Self::List(items) => items.iter().copied().collect(),
        }
    }
}
