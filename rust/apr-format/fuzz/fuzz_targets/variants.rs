//! The JSON container and its wrappers, made field by field: an honest file opens and gives back what was put
//! into it; one with any lies, under a right checksum and compressed anew, keeps its promises or is refused.
#![no_main]

use std::collections::BTreeMap;

use apr_format::{container::Container, source::read_vec, watch::Watch};
use apr_format_fuzz::{Number, look, on_this_thread, put};
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
    lies: Vec<Lie<'a>>,
}

#[derive(Debug, Arbitrary)]
struct Shape {
    dims: Vec<u8>,
    /// Bytes before it that no tensor has: data need not be aligned.
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
enum Lie<'a> {
    MetadataLength(Number),
    Count(Number),
    IndexLength(Number),
    /// A field of an element of the index.
    Field(u8, Field, Number),
    Dtype(u8, &'a str),
    Missing(u8, Field),
    /// An element once more.
    Twice(u8),
    /// Any byte of the file within, before its checksum is made right.
    Byte(u16, u8),
    Cut(u16),
    Append(u8),
    /// A byte of the file within after that.
    Damage(u16, u8),
    /// The wrapper's own length, and any byte of what it holds.
    Unpacked(Number),
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
    let Some((bytes, expected)) = make(&input) else { return };
    if !input.lies.is_empty() {
        look(&bytes);
        return;
    }
    let opened = match Container::open(bytes.as_slice()) {
        Ok(opened) => opened,
        Err(error) => panic!("an honest file is refused: {error}"),
    };
    look(&bytes);
    let image = opened.image().expect("it was unpacked when it was opened");
    let tensors: Vec<_> = opened.contents().tensors.iter().collect();
    assert_eq!(tensors.len(), expected.len());
    for (found, expected) in tensors.iter().zip(&expected) {
        assert_eq!((&found.name, &found.dims), (&expected.name, &expected.dims));
        let bytes = read_vec(&image, found.offset, found.nbytes).expect("its bytes are there");
        assert_eq!(bytes, expected.bytes);
    }
    assert!(matches!(opened.check_footer(&Watch::default()), Ok(Some(_))));
    let metadata: BTreeMap<String, String> =
        serde_json::from_str(&opened.metadata().expect("it was read at opening")).expect("it was checked");
    assert!(metadata.iter().all(|(key, text)| input.metadata.get(key.as_str()) == Some(&text.as_str())));
});

/// The file and what it holds; None where that is too much.
fn make(input: &Input) -> Option<(Vec<u8>, Vec<Expected>)> {
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
    for lie in &input.lies {
        lie_in_index(lie, &mut index);
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
    for lie in &input.lies {
        lie_in_file(lie, &mut bytes, 8 + metadata.len());
    }
    let checksum = apr_format::crc::crc32(bytes.as_slice(), bytes.len() as u64).expect("no I/O errors");
    bytes.extend(checksum.to_le_bytes());
    for lie in &input.lies {
        if let &Lie::Damage(at, bits) = lie {
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= bits;
        }
    }
    let mut bytes = wrap(bytes, &input.wrapper)?;
    if input.wrapper != Wrapper::None {
        for lie in &input.lies {
            lie_in_wrapper(lie, &mut bytes);
        }
    }
    Some((bytes, expected))
}

fn lie_in_index(lie: &Lie, index: &mut Vec<Value>) {
    let which = |which: u8, index: &[Value]| usize::from(which) % index.len().max(1);
    match lie {
        Lie::Field(entry, field, number) => {
            let at = which(*entry, index);
            let Some(entry) = index.get_mut(at) else { return };
            let old = &entry[field.key()];
            let mut bytes = old.as_u64().unwrap_or(1).to_le_bytes();
            number.replace::<8>(&mut bytes, 0);
            let number = u64::from_le_bytes(bytes);
            entry[field.key()] = if old.is_array() { json!([number, 2]) } else { json!(number) };
        }
        Lie::Dtype(entry, dtype) => {
            let at = which(*entry, index);
            if let Some(entry) = index.get_mut(at) {
                entry["dtype"] = json!(dtype);
            }
        }
        Lie::Missing(entry, field) => {
            let at = which(*entry, index);
            if let Some(Value::Object(entry)) = index.get_mut(at) {
                entry.remove(field.key());
            }
        }
        Lie::Twice(entry) => {
            let at = which(*entry, index);
            index.extend(index.get(at).cloned());
        }
        _ => {}
    }
}

fn lie_in_file(lie: &Lie, bytes: &mut Vec<u8>, metadata_end: usize) {
    match lie {
        Lie::MetadataLength(number) => number.replace::<4>(bytes, 4),
        Lie::Count(number) => number.replace::<4>(bytes, metadata_end),
        Lie::IndexLength(number) => number.replace::<4>(bytes, metadata_end + 4),
        Lie::Byte(at, byte) => {
            let at = usize::from(*at) % bytes.len().max(1);
            put(bytes, at, &[*byte]);
        }
        Lie::Cut(count) => bytes.truncate(bytes.len().saturating_sub(usize::from(*count))),
        Lie::Append(count) => bytes.resize(bytes.len() + usize::from(*count), 0),
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

fn lie_in_wrapper(lie: &Lie, bytes: &mut Vec<u8>) {
    match lie {
        Lie::Unpacked(number) => {
            number.replace::<4>(bytes, 5);
            // Told by an LZ4 wrapper twice; it is none where they differ.
            if bytes.get(4) == Some(&1) && bytes.len() >= 13 {
                bytes.copy_within(5..9, 9);
            }
        }
        Lie::Packed(at, byte) => {
            let at = 9 + usize::from(*at) % (bytes.len() - 8);
            put(bytes, at, &[*byte]);
        }
        Lie::PackedCut(count) => {
            let kept = bytes.len().saturating_sub(usize::from(*count)).max(9);
            bytes.truncate(kept);
        }
        Lie::PackedAppend(count) => bytes.resize(bytes.len() + usize::from(*count), 0),
        _ => {}
    }
}
