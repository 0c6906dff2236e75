//! Whisper's container under the magic `APR1`, of which header and tensor index are shown and no values are read:
//!
//! ```text
//! | APR1 | header (48 B) | tensor index, 96 bytes an entry | data | vocabulary | filterbank | CRC32 |
//! ```
//!
//! No file of its writer was to be had: values that nobody could compare are not handed out.

use crate::{
    dtype,
    error::{Error, Part, Result},
    index::wrong_name,
    sniff,
    source::{Source, read_vec},
};

/// Bytes of the magic and the header; where the index starts.
const HEAD: u64 = 52;
/// Bytes of an entry, of which the last seven say nothing.
const ENTRY: usize = 96;
const NAME: usize = 48;
const MAX_DIMS: usize = 4;
const QUANTIZATIONS: [&str; 4] = ["f32", "f16", "int8", "int4"];

/// What a file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whisper {
    /// Version of the container.
    pub version: u16,
    /// Number of the model's kind.
    pub model: u8,
    /// What all values are stored as: f32, f16, int8 or int4.
    pub quantization: &'static str,
    /// Whether the body is compressed: its index is then not shown.
    pub is_compressed: bool,
    /// Number of tensors.
    pub tensor_count: u16,
    /// Bit 0: a vocabulary; bit 1: a filterbank.
    pub flags: u8,
    /// The model's ten sizes, in the order of the header.
    pub sizes: [u32; 10],
    /// The tensors in the order of the index; none where the body is compressed.
    pub tensors: Vec<Tensor>,
    /// Length of the file.
    pub size: u64,
}

/// An entry of the index, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Dims.
    pub dims: Vec<u64>,
    /// Where its bytes start.
    pub offset: u64,
    /// Its bytes.
    pub nbytes: u64,
}

/// Read header and index; None where the file is of another form.
///
/// # Errors
/// [`Error::Truncated`], [`Error::HeaderField`], [`Error::Name`], [`Error::JsonIndex`] with the byte that is
/// wrong.
pub fn read(source: &(impl Source + ?Sized)) -> Result<Option<Whisper>> {
    let size = source.size()?;
    let prefix = read_vec(source, 0, size.min(HEAD))?;
    if !sniff::is_whisper(&prefix) {
        return Ok(None);
    }
    reaches(size, Part::Header, "the header", HEAD)?;
    let mut header = [0; 48];
    source.read_at(4, &mut header)?;
    let wrong = |offset, what| Error::HeaderField { offset, what };
    let quantization = QUANTIZATIONS
        .get(usize::from(header[3]))
        .ok_or_else(|| wrong(7, format!("quantization {} is unknown", header[3])))?;
    let tensor_count = u16::from_le_bytes([header[5], header[6]]);
    let is_compressed = header[4] != 0;
    let mut tensors = Vec::new();
    if !is_compressed {
        let bytes = ENTRY as u64 * u64::from(tensor_count);
        reaches(size, Part::Index, "the tensor index", HEAD + bytes)?;
        let index = read_vec(source, HEAD, bytes)?;
        for (number, entry) in (0..).zip(index.as_chunks::<ENTRY>().0) {
            tensors.push(tensor(entry, number)?);
        }
    }
    Ok(Some(Whisper {
        version: u16::from_le_bytes([header[0], header[1]]),
        model: header[2],
        quantization,
        is_compressed,
        tensor_count,
        flags: header[7],
        sizes: std::array::from_fn(|i| {
            u32::from_le_bytes(std::array::from_fn(|byte| header[8 + 4 * i + byte]))
        }),
        tensors,
        size,
    }))
}

fn reaches(have: u64, part: Part, what: &str, need: u64) -> Result<()> {
    if need > have {
        return Err(Error::Truncated { part, what: what.into(), tensor: None, need, have });
    }
    Ok(())
}

fn tensor(bytes: &[u8; ENTRY], entry: u32) -> Result<Tensor> {
    let start = HEAD + ENTRY as u64 * u64::from(entry);
    let wrong = |what| Error::Name { entry, offset: start, what };
    let name = bytes[..NAME].split(|&byte| byte == 0).next().unwrap_or_default();
    let name = std::str::from_utf8(name).map_err(|_| wrong("is not UTF-8"))?.to_owned();
    if let Some(what) = wrong_name(&name) {
        return Err(wrong(what));
    }
    let [offset, nbytes, count] = [NAME, NAME + 8, NAME + 16].map(|at| word(bytes, at));
    let dims: Vec<_> = (0..MAX_DIMS).map(|i| word(bytes, NAME + 24 + 4 * i) & 0xffff_ffff).collect();
    let ndim = usize::from(bytes[NAME + 40]);
    let Some(dims) = dims.get(..ndim) else {
        let offset = start + NAME as u64 + 40;
        return Err(Error::JsonIndex {
            what: format!("tensor {name:?}: {ndim} dimensions, at most {MAX_DIMS} have a place"),
            tensor: Some(name),
            offset,
        });
    };
    if dtype::count(dims) != Some(count) {
        let what = format!("tensor {name:?}: {count} values, which is not the product of its dims {dims:?}");
        return Err(Error::JsonIndex { tensor: Some(name), offset: start + NAME as u64 + 16, what });
    }
    Ok(Tensor { name, dims: dims.into(), offset, nbytes })
}

/// Eight bytes from a place that is inside.
fn word(bytes: &[u8; ENTRY], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(compressed: u8, entries: &[[u8; ENTRY]]) -> Vec<u8> {
        let mut bytes = b"APR1\x01\0\x02\x01".to_vec();
        bytes.push(compressed);
        bytes.extend(u16::try_from(entries.len()).unwrap().to_le_bytes());
        bytes.push(3);
        bytes.extend((1..=10_u32).flat_map(u32::to_le_bytes));
        bytes.extend(entries.as_flattened());
        bytes
    }

    fn entry(name: &[u8], count: u64, dims: [u32; 4], ndim: u8) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..name.len()].copy_from_slice(name);
        for (at, value) in [(48, 300), (56, 2 * count), (64, count)] {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        for (i, dim) in dims.iter().enumerate() {
            bytes[72 + 4 * i..76 + 4 * i].copy_from_slice(&dim.to_le_bytes());
        }
        bytes[88] = ndim;
        bytes
    }

    fn offset(bytes: &[u8]) -> Option<u64> {
        read(bytes).unwrap_err().offset()
    }

    #[test]
    fn header_and_index_are_what_they_say() {
        let whole = [entry(b"encoder.conv1.weight", 12, [3, 4, 9, 9], 2), entry(&[b'n'; 48], 1, [0; 4], 0)];
        let found = read(file(0, &whole).as_slice()).unwrap().unwrap();
        assert_eq!((found.version, found.model, found.quantization, found.flags), (1, 2, "f16", 3));
        assert_eq!(found.sizes, std::array::from_fn(|i| u32::try_from(i).unwrap() + 1));
        let [first, second] = found.tensors.as_slice() else { panic!("{:?}", found.tensors) };
        assert_eq!((first.name.as_str(), first.dims.as_slice()), ("encoder.conv1.weight", &[3, 4][..]));
        assert_eq!((first.offset, first.nbytes), (300, 24));
        assert_eq!((second.name.len(), second.dims.len()), (48, 0));
        let found = read(file(1, &[]).as_slice()).unwrap().unwrap();
        assert!(found.is_compressed && found.tensors.is_empty());
        assert_eq!(read(b"APR1\x02\0\0\0{}".as_slice()).unwrap(), None);
    }

    #[test]
    fn the_first_wrong_byte_is_named() {
        let whole = file(0, &[entry(b"a", 12, [3, 4, 0, 0], 2)]);
        for size in 6..whole.len() {
            assert_eq!(offset(&whole[..size]), Some(size as u64));
        }
        let mut unknown = whole;
        unknown[7] = 4;
        assert_eq!(offset(&unknown), Some(7));
        for (lie, at) in [
            (entry(b"", 1, [0; 4], 0), 52),
            (entry(b"\xff", 1, [0; 4], 0), 52),
            (entry(b"a", 1, [1; 4], 5), 140),
            (entry(b"a", 11, [3, 4, 0, 0], 2), 116),
        ] {
            assert_eq!(offset(&file(0, &[lie])), Some(at));
        }
    }
}
