//! Build JSON containers and their wrappers field by field. A valid file must open and contain what was put into it; one
//! with mutations, under a correct checksum and compressed, must be refused or keep the rules of the format.
#![no_main]

use std::collections::BTreeMap;

use apr_format::internal::{container::Container, source::read_vec, watch::Watch};
use apr_format_fuzz::{Number, check, on_this_thread, put};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use serde_json::{Map, Value, json};

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    tensors: BTreeMap<&'a str, Shape>,
    metadata: BTreeMap<&'a str, &'a str>,
    /// Repeated over the data.
    data: &'a [u8],
    wrapper: Wrapper,
    mutations: Vec<Mutation<'a>>,
}

#[derive(Debug, Arbitrary)]
struct Shape {
    dims: Vec<u8>,
    /// Size of the unused space before the tensor, in bytes. This form does not require alignment.
    gap: u8,
}

#[derive(Debug, Arbitrary, PartialEq, Eq)]
enum Wrapper {
    None,
    Plain { old: bool },
    Lz4 { old: bool },
    Zstd { old: bool },
}

#[derive(Debug, Arbitrary)]
enum Mutation<'a> {
    MetadataLength(Number),
    Count(Number),
    IndexLength(Number),
    /// A field of an entry of the index.
    Field(u8, Field, Number),
    Dtype(u8, &'a str),
    Missing(u8, Field),
    /// An entry, repeated.
    Twice(u8),
    /// Any byte of the file inside, before its checksum is computed.
    Byte(u16, u8),
    Cut(u16),
    Append(u8),
    /// Any byte of the file inside, after its checksum was computed.
    Damage(u16, u8),
    /// The length in the wrapper.
    Unpacked(Number),
    /// Any compressed byte.
    Packed(u16, u8),
    PackedCut(u16),
    PackedAppend(u8),
}

#[derive(Debug, Arbitrary)]
enum Field {
    Offset,
    Size,
    Shape,
    Name,
}

impl Field {
    fn key(&self) -> &'static str {
        match self {
            Self::Offset => "offset",
            Self::Size => "size",
            Self::Shape => "shape",
            Self::Name => "name",
        }
    }
}

struct Expected {
    name: String,
    dims: Vec<u64>,
    bytes: Vec<u8>,
}

fuzz_target!(init: on_this_thread(), |input: Input| {
    let Some((bytes, expected)) = build(&input) else { return };
    if !input.mutations.is_empty() {
        check(&bytes);
        return;
    }
    let opened = match Container::open(bytes.as_slice()) {
        Ok(opened) => opened,
        Err(error) => panic!("a valid file is refused: {error}"),
    };
    check(&bytes);
    let image = opened.image().expect("it was unpacked when it was opened");
    let tensors: Vec<_> = opened.contents().tensors.entries().collect();
    assert_eq!(tensors.len(), expected.len());
    for (entry, expected) in tensors.iter().zip(&expected) {
        assert_eq!((entry.name, &entry.dims().collect()), (expected.name.as_str(), &expected.dims));
        let bytes = read_vec(&image, entry.offset, entry.nbytes).expect("its bytes are there");
        assert_eq!(bytes, expected.bytes);
    }
    assert!(matches!(opened.check_footer(&Watch::default()), Ok(Some(_))));
    let metadata: BTreeMap<String, String> =
        serde_json::from_str(&opened.metadata().expect("it was read at opening")).expect("it was checked");
    assert!(metadata.iter().all(|(key, text)| input.metadata.get(key.as_str()) == Some(&text.as_str())));
});

/// Build a file and return it with its tensors; `None` if they have too many values.
fn build(input: &Input) -> Option<(Vec<u8>, Vec<Expected>)> {
    let data = if input.data.is_empty() { &[0] } else { input.data };
    let mut stream = data.iter().copied().cycle();
    let (mut index, mut body, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    for (name, shape) in &input.tensors {
        if name.is_empty() || name.len() > 256 || name.contains('\0') {
            continue;
        }
        let dims: Vec<_> = shape.dims.iter().take(8).map(|&dim| u64::from(dim)).collect();
        let count =
            dims.iter().try_fold(1_usize, |count, &dim| count.checked_mul(usize::try_from(dim).ok()?));
        let size = 4 * count.filter(|&count| count < 1 << 12)?;
        body.extend(stream.by_ref().take(usize::from(shape.gap % 8)));
        let bytes: Vec<_> = stream.by_ref().take(size).collect();
        index.push(json!({"name": name, "dtype": "F32", "shape": dims, "offset": body.len(), "size": size}));
        body.extend(&bytes);
        expected.push(Expected { name: (*name).into(), dims, bytes });
    }
    let count = u32::try_from(index.len()).ok()?;
    for mutation in &input.mutations {
        mutate_index(mutation, &mut index);
    }
    let metadata: Map<_, _> =
        input.metadata.iter().map(|(key, text)| ((*key).to_owned(), Value::from(*text))).collect();
    let metadata = serde_json::to_vec(&metadata).expect("JSON");
    let index = serde_json::to_vec(&index).expect("JSON");
    let mut bytes = b"APR1".to_vec();
    bytes.extend(u32::try_from(metadata.len()).ok()?.to_le_bytes());
    bytes.extend(&metadata);
    bytes.extend(count.to_le_bytes());
    bytes.extend(u32::try_from(index.len()).ok()?.to_le_bytes());
    bytes.extend(&index);
    bytes.extend(&body);
    for mutation in &input.mutations {
        mutate_file(mutation, &mut bytes, 8 + metadata.len());
    }
    let checksum =
        apr_format::internal::crc::crc32(bytes.as_slice(), bytes.len() as u64).expect("no I/O errors");
    bytes.extend(checksum.to_le_bytes());
    for mutation in &input.mutations {
        if let &Mutation::Damage(at, bits) = mutation {
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= bits;
        }
    }
    let mut bytes = wrap(bytes, &input.wrapper)?;
    if input.wrapper != Wrapper::None {
        for mutation in &input.mutations {
            mutate_wrapper(mutation, &mut bytes);
        }
    }
    Some((bytes, expected))
}

fn mutate_index(mutation: &Mutation, index: &mut Vec<Value>) {
    let which = |which: u8, index: &[Value]| usize::from(which) % index.len().max(1);
    match mutation {
        Mutation::Field(entry, field, number) => {
            let at = which(*entry, index);
            let Some(entry) = index.get_mut(at) else { return };
            let old = &entry[field.key()];
            let mut bytes = old.as_u64().unwrap_or(1).to_le_bytes();
            number.replace::<8>(&mut bytes, 0);
            let number = u64::from_le_bytes(bytes);
            entry[field.key()] = if old.is_array() { json!([number, 2]) } else { json!(number) };
        }
        Mutation::Dtype(entry, dtype) => {
            let at = which(*entry, index);
            if let Some(entry) = index.get_mut(at) {
                entry["dtype"] = json!(dtype);
            }
        }
        Mutation::Missing(entry, field) => {
            let at = which(*entry, index);
            if let Some(Value::Object(entry)) = index.get_mut(at) {
                entry.remove(field.key());
            }
        }
        Mutation::Twice(entry) => {
            let at = which(*entry, index);
            index.extend(index.get(at).cloned());
        }
        _ => {}
    }
}

fn mutate_file(mutation: &Mutation, bytes: &mut Vec<u8>, metadata_end: usize) {
    match mutation {
        Mutation::MetadataLength(number) => number.replace::<4>(bytes, 4),
        Mutation::Count(number) => number.replace::<4>(bytes, metadata_end),
        Mutation::IndexLength(number) => number.replace::<4>(bytes, metadata_end + 4),
        Mutation::Byte(at, byte) => {
            let at = usize::from(*at) % bytes.len().max(1);
            put(bytes, at, &[*byte]);
        }
        Mutation::Cut(count) => bytes.truncate(bytes.len().saturating_sub(usize::from(*count))),
        Mutation::Append(count) => bytes.resize(bytes.len() + usize::from(*count), 0),
        _ => {}
    }
}

fn wrap(bytes: Vec<u8>, wrapper: &Wrapper) -> Option<Vec<u8>> {
    let size = u32::try_from(bytes.len()).ok()?.to_le_bytes();
    let (old, codec, packed) = match wrapper {
        Wrapper::None => return Some(bytes),
        Wrapper::Plain { old } => (old, 0, bytes),
        Wrapper::Lz4 { old } => (old, 1, [size.to_vec(), lz4_flex::block::compress(&bytes)].concat()),
        Wrapper::Zstd { old } => (old, 2, zstd::bulk::compress(&bytes, 1).ok()?),
    };
    let magic = if *old { b"APR\0" } else { b"APR2" };
    Some([magic, [codec].as_slice(), &size, &packed].concat())
}

fn mutate_wrapper(mutation: &Mutation, bytes: &mut Vec<u8>) {
    match mutation {
        Mutation::Unpacked(number) => {
            number.replace::<4>(bytes, 5);
            // An LZ4 wrapper repeats the length. If the two differ, the file is not a wrapper.
            if bytes.get(4) == Some(&1) && bytes.len() >= 13 {
                bytes.copy_within(5..9, 9);
            }
        }
        Mutation::Packed(at, byte) => {
            let at = 9 + usize::from(*at) % (bytes.len() - 8);
            put(bytes, at, &[*byte]);
        }
        Mutation::PackedCut(count) => {
            let kept = bytes.len().saturating_sub(usize::from(*count)).max(9);
            bytes.truncate(kept);
        }
        Mutation::PackedAppend(count) => bytes.resize(bytes.len() + usize::from(*count), 0),
        _ => {}
    }
}
