//! The JSON container of December 2025:
//!
//! ```text
//! | APR1 | u32 metadata length | JSON metadata | u32 tensors | u32 index length | JSON index | data | CRC32 |
//! ```
//!
//! The index is an array of `{name, dtype, shape, offset, size}`, offsets counted from the start of the data.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    dtype::{self, Dtype},
    error::{Error, Part, Result},
    source::{Source, read_vec},
    v2::{
        FOOTER_SIZE,
        header::Header,
        index::{self, Tensor, dims},
        metadata,
        read::Contents,
    },
};

/// Magic.
pub const MAGIC: [u8; 4] = *b"APR1";
/// The magic and the metadata's length.
const HEAD: u64 = 8;
/// The number of tensors and the length of the index.
const INDEX_HEAD: u64 = 8;
/// The one dtype that was written.
const F32: &str = "F32";

/// Read and check metadata and index. Of the header, what the form does not have is zero.
///
/// # Errors
/// The first rule that does not hold.
pub fn open(source: &(impl Source + ?Sized)) -> Result<Contents> {
    let size = source.size()?;
    reaches(size, Part::Header, "the header", HEAD)?;
    let [magic, length] = words(source, 0)?;
    if magic != MAGIC {
        return Err(Error::HeaderField { offset: 0, what: "no APR1 file is in the wrapper".into() });
    }
    let metadata_size = u32::from_le_bytes(length);
    limit(4, "metadata length", metadata_size)?;
    let metadata_end = HEAD + u64::from(metadata_size);
    reaches(size, Part::Metadata, "the metadata", metadata_end)?;
    let json = read_vec(source, HEAD, u64::from(metadata_size))?;
    let metadata = metadata::check(json, HEAD)?;

    let tensor_index_offset = metadata_end + INDEX_HEAD;
    reaches(size, Part::Index, "the tensor index", tensor_index_offset)?;
    let [count, length] = words(source, metadata_end)?.map(u32::from_le_bytes);
    limit(metadata_end + 4, "index length", length)?;
    let data_offset = tensor_index_offset + u64::from(length);
    reaches(size, Part::Index, "the tensor index", data_offset)?;
    let json = read_vec(source, tensor_index_offset, u64::from(length))?;
    let tensors = Index { at: tensor_index_offset, data_offset, size }.read(json)?;
    if tensors.len() as u64 != u64::from(count) {
        let what = format!("the number of tensors is {count}, but the index lists {}", tensors.len());
        return Err(Error::HeaderField { offset: metadata_end, what });
    }
    let tensors = index::Index::of(tensors);
    index::check_overlaps(&tensors)?;
    let footer = read_footer(source, size, data_offset, &tensors)?;
    let header = Header {
        magic: MAGIC,
        version: (1, 0),
        flags: 0,
        tensor_count: count,
        metadata_offset: HEAD,
        metadata_size,
        tensor_index_offset,
        data_offset,
        checksum: 0,
        reserved: [0; 20],
    };
    Ok(Contents { header, metadata, tensors, footer: Some(footer), size })
}

fn limit(offset: u64, what: &str, size: u32) -> Result<()> {
    if u64::from(size) > metadata::MAX_READ {
        let what = format!("{what} {size} is above the limit of 64 MiB");
        return Err(Error::HeaderField { offset, what });
    }
    Ok(())
}

fn reaches(have: u64, part: Part, what: &str, need: u64) -> Result<()> {
    if need > have {
        return Err(Error::Truncated { part, what: what.into(), tensor: None, need, have });
    }
    Ok(())
}

/// Two times four bytes, which are there.
fn words(source: &(impl Source + ?Sized), at: u64) -> Result<[[u8; 4]; 2]> {
    let mut words = [[0; 4]; 2];
    source.read_at(at, words.as_flattened_mut())?;
    Ok(words)
}

/// The CRC32 right after the data, with which the file ends.
fn read_footer(
    source: &(impl Source + ?Sized),
    size: u64,
    data_offset: u64,
    tensors: &index::Index,
) -> Result<(u64, u32)> {
    // In range: each end was compared with the file's.
    let at = tensors.iter().map(|tensor| tensor.offset + tensor.nbytes).fold(data_offset, u64::max);
    let end = at + FOOTER_SIZE;
    reaches(size, Part::Footer, "the footer", end)?;
    if size > end {
        return Err(Error::TrailingBytes { offset: end, extra: size - end });
    }
    let mut bytes = [0; 4];
    source.read_at(at, &mut bytes)?;
    Ok((at, u32::from_le_bytes(bytes)))
}

/// Where the index and the data start, and the file's length.
struct Index {
    at: u64,
    data_offset: u64,
    size: u64,
}

/// An element of the array.
#[derive(Deserialize)]
struct Entry {
    name: String,
    dtype: String,
    #[serde(deserialize_with = "dims")]
    shape: Vec<u64>,
    offset: u64,
    size: u64,
}

impl Index {
    fn wrong(&self, at: usize, what: String) -> Error {
        Error::JsonIndex { tensor: None, offset: self.at + at as u64, what }
    }

    /// The tensors, sorted by name.
    fn read(&self, json: Vec<u8>) -> Result<Vec<Tensor>> {
        let text = String::from_utf8(json)
            .map_err(|error| self.wrong(error.utf8_error().valid_up_to(), "not UTF-8".into()))?;
        // First as any JSON: its depth and the number of its values are bounded.
        metadata::walk(&text).map_err(|(at, what)| self.wrong(at, what))?;
        let entries: Vec<&RawValue> = serde_json::from_str(&text).map_err(|error| {
            let (at, what) = metadata::located(&text, &error);
            self.wrong(at, what)
        })?;
        let mut tensors = Vec::with_capacity(entries.len());
        for (number, raw) in entries.into_iter().enumerate() {
            // The raw text is a part of `text`.
            let at = raw.get().as_ptr() as usize - text.as_ptr() as usize;
            let entry: Entry = serde_json::from_str(raw.get()).map_err(|error| {
                let (within, what) = metadata::located(raw.get(), &error);
                self.wrong(at + within, what)
            })?;
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            tensors.push((at, self.tensor(entry, number, self.at + at as u64)?));
        }
        tensors.sort_unstable_by(|(at, a), (bt, b)| (&a.name, at).cmp(&(&b.name, bt)));
        if let Some((_, (at, twice))) =
            tensors.iter().zip(tensors.iter().skip(1)).find(|((_, a), (_, b))| a.name == b.name)
        {
            let what = format!("tensor {:?} is listed twice", twice.name);
            return Err(Error::JsonIndex {
                tensor: Some(twice.name.clone()),
                offset: self.at + *at as u64,
                what,
            });
        }
        Ok(tensors.into_iter().map(|(_, tensor)| tensor).collect())
    }

    /// Check one entry, which starts at `at`.
    fn tensor(&self, entry: Entry, number: u32, at: u64) -> Result<Tensor> {
        let Entry { name, dtype, shape: dims, offset, size } = entry;
        if let Some(what) = index::wrong_name(&name) {
            return Err(Error::Name { entry: number, offset: at, what });
        }
        if dtype != F32 {
            let what = format!("tensor {name:?} has dtype {dtype:?}: only {F32:?} is known");
            return Err(Error::JsonIndex { tensor: Some(name), offset: at, what });
        }
        let dtype = Dtype::F32;
        let Some(expected) = dtype::count(&dims).and_then(|_| dtype.nbytes(&dims)) else {
            return Err(Error::DimsOverflow { tensor: name, dims, offset: at });
        };
        if size != expected {
            let dtype = dtype.name();
            return Err(Error::SizeMismatch { tensor: name, dtype, dims, size, expected, offset: at });
        }
        let start = self.data_offset.checked_add(offset);
        let need = start.and_then(|start| start.checked_add(size)?.checked_add(FOOTER_SIZE));
        let (Some(start), Some(need)) = (start, need) else {
            return Err(Error::OffsetOverflow { tensor: name, value: offset, size, offset: at });
        };
        if need > self.size {
            return Err(Error::Truncated {
                part: Part::Data,
                what: format!("tensor {name:?} ({size} bytes from byte {start}, before the footer)"),
                tensor: Some(name),
                need,
                have: self.size,
            });
        }
        Ok(Tensor { name, dtype, dims, offset: start, nbytes: size })
    }
}
