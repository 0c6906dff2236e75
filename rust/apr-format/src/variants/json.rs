//! The JSON container, written in December 2025:
//!
//! ```text
//! | APR1 | u32 metadata length | JSON metadata | u32 tensors | u32 index length | JSON index | data | CRC32 |
//! ```
//!
//! The index is an array of `{name, dtype, shape, offset, size}`. Offsets count from the start of the data.

use std::fmt;

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    contents::{Contents, FOOTER_SIZE, Metadata},
    dtype::{self, Dtype},
    error::{Error, Part, Result, Rule},
    index::{self, Index, Tensor},
    json::{self, dims, number},
    source::{Source, read_vec},
};

/// The magic.
pub const MAGIC: [u8; 4] = *b"APR1";
/// The version that the magic stands for. The file has no field for it.
pub const VERSION: (u8, u8) = (1, 0);
/// Bytes of the magic and of the length of the metadata.
const HEAD: u64 = 8;
/// Bytes of the number of tensors and of the length of the index.
const INDEX_HEAD: u64 = 8;
/// Bytes of the longest entry that is parsed. A name of 256 bytes takes at most 1,536 bytes as escapes, and the other
/// fields take less. Without the limit, a string of a megabyte in an entry gave a message of a megabyte.
const MAX_ENTRY: usize = 4096;
/// The only dtype that was ever written.
const F32: &str = "F32";

/// The places of the parts of a file. In a wrapper, they count in the decompressed file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The number of tensors in the index.
    pub tensor_count: u32,
    /// Where the metadata start.
    pub metadata_offset: u64,
    /// Bytes of the metadata.
    pub metadata_size: u32,
    /// Where the text of the tensor index starts.
    pub tensor_index_offset: u64,
    /// Where the tensor data start.
    pub data_offset: u64,
}

/// Read and check the metadata and the index.
///
/// # Errors
/// The first rule that the file breaks.
pub fn open(source: &(impl Source + ?Sized)) -> Result<(Header, Contents)> {
    let size = source.size()?;
    reaches(size, Part::Header, HEAD)?;
    let [magic, length] = words(source, 0)?;
    if magic != MAGIC {
        return Err(
            Rule::malformed("the wrapper does not contain a JSON container (magic APR1)").at(Part::Header, 0)
        );
    }
    let metadata_size = u32::from_le_bytes(length);
    limit(4, "metadata length", metadata_size)?;
    let metadata_end = HEAD + u64::from(metadata_size);
    reaches(size, Part::Metadata, metadata_end)?;
    let metadata = json::check(read_vec(source, HEAD, u64::from(metadata_size))?, HEAD)?;

    let tensor_index_offset = metadata_end + INDEX_HEAD;
    reaches(size, Part::Index, tensor_index_offset)?;
    let [count, length] = words(source, metadata_end)?.map(u32::from_le_bytes);
    limit(metadata_end + 4, "index length", length)?;
    let data_offset = tensor_index_offset + u64::from(length);
    reaches(size, Part::Index, data_offset)?;
    let index = read_vec(source, tensor_index_offset, u64::from(length))?;
    let tensors = Reader { at: tensor_index_offset, data_offset, size }.read(index)?;
    if tensors.len() as u64 != u64::from(count) {
        let what = format!("the number of tensors is {count}, but the index has {} entries", tensors.len());
        return Err(Rule::Malformed { what }.at(Part::Header, metadata_end));
    }
    index::check_overlaps(&tensors)?;
    let footer = read_footer(source, size, data_offset, &tensors)?;
    let header = Header {
        tensor_count: count,
        metadata_offset: HEAD,
        metadata_size,
        tensor_index_offset,
        data_offset,
    };
    let metadata = Metadata::Checked(metadata);
    Ok((header, Contents { metadata, tensors, footer: Some(footer), size }))
}

fn limit(offset: u64, what: &str, size: u32) -> Result<()> {
    if u64::from(size) > json::MAX_READ {
        let what = format!("{what} {size} is above the limit of 64 MiB");
        return Err(Rule::Malformed { what }.at(Part::Header, offset));
    }
    Ok(())
}

fn reaches(have: u64, part: Part, need: u64) -> Result<()> {
    if need > have {
        return Err(Error::truncated(part, need, have));
    }
    Ok(())
}

/// Read two words of four bytes, which the caller knows to be in the file.
fn words(source: &(impl Source + ?Sized), at: u64) -> Result<[[u8; 4]; 2]> {
    let mut words = [[0; 4]; 2];
    source.read_at(at, words.as_flattened_mut())?;
    Ok(words)
}

/// Read the CRC32, which follows the last tensor and ends the file.
fn read_footer(
    source: &(impl Source + ?Sized),
    size: u64,
    data_offset: u64,
    tensors: &Index,
) -> Result<(u64, u32)> {
    // Cannot overflow: each tensor was checked to end within the file.
    let at = tensors.entries().map(|entry| entry.offset + entry.nbytes).fold(data_offset, u64::max);
    let end = at + FOOTER_SIZE;
    reaches(size, Part::Footer, end)?;
    if size > end {
        return Err(Rule::TrailingBytes { extra: size - end }.at(Part::Footer, end));
    }
    let mut bytes = [0; 4];
    source.read_at(at, &mut bytes)?;
    Ok((at, u32::from_le_bytes(bytes)))
}

/// Reads the index.
struct Reader {
    /// Where the index starts.
    at: u64,
    data_offset: u64,
    /// The length of the file.
    size: u64,
}

/// An entry of the index.
#[derive(Deserialize)]
struct Entry {
    name: String,
    dtype: String,
    #[serde(deserialize_with = "dims")]
    shape: Vec<u64>,
    #[serde(deserialize_with = "number")]
    offset: u64,
    #[serde(deserialize_with = "number")]
    size: u64,
}

/// Parses the entries one at a time, so that only the compact form of the index is kept: an index of 64 MiB would take
/// more memory than the file as a list of parsed entries.
struct Entries<'a> {
    reader: &'a Reader,
    text: &'a str,
    tensors: Index,
    /// Where each entry starts in the text; a u32 is enough for 64 MiB.
    starts: Vec<u32>,
    /// The error of the entry that stopped parsing. serde would keep only its text.
    wrong: Option<Error>,
}

impl Entries<'_> {
    fn add(&mut self, raw: &str) -> Result<()> {
        // serde_json borrows the raw text from `text`, so the difference of the addresses is its place there.
        let at = raw.as_ptr() as usize - self.text.as_ptr() as usize;
        if raw.len() > MAX_ENTRY {
            let what = format!("an entry of {} bytes; at most {MAX_ENTRY} are allowed", raw.len());
            return Err(self.reader.wrong(at, what));
        }
        let entry: Entry = serde_json::from_str(raw).map_err(|error| {
            let (within, what) = json::located(raw, &error);
            self.reader.wrong(at + within, what)
        })?;
        let number = u32::try_from(self.starts.len()).unwrap_or(u32::MAX);
        self.tensors.push(&self.reader.tensor(entry, number, self.reader.at + at as u64)?);
        self.starts.push(u32::try_from(at).unwrap_or(u32::MAX));
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &mut Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for &mut Entries<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of tensors")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<(), A::Error> {
        while let Some(raw) = items.next_element::<&RawValue>()? {
            if let Err(error) = self.add(raw.get()) {
                self.wrong = Some(error);
                return Err(A::Error::custom("invalid entry"));
            }
        }
        Ok(())
    }
}

impl Reader {
    fn wrong(&self, at: usize, what: String) -> Error {
        Rule::Malformed { what }.at(Part::Index, self.at + at as u64)
    }

    /// Parse the index and sort the tensors by name.
    fn read(&self, json: Vec<u8>) -> Result<Index> {
        let text = String::from_utf8(json)
            .map_err(|error| self.wrong(error.utf8_error().valid_up_to(), "invalid UTF-8".into()))?;
        // First as any JSON value, which limits the nesting and the number of values.
        json::walk(&text).map_err(|(at, what)| self.wrong(at, what))?;
        let first = text.bytes().position(|byte| !byte.is_ascii_whitespace());
        if let Some(at) = first.filter(|&at| text.as_bytes().get(at) != Some(&b'[')) {
            return Err(self.wrong(at, "not a list of tensors (it must start with '[')".into()));
        }
        let mut entries = Entries {
            reader: self,
            text: &text,
            tensors: Index::counting_from(self.data_offset),
            starts: Vec::new(),
            wrong: None,
        };
        let walked = (&mut entries).deserialize(&mut serde_json::Deserializer::from_str(&text));
        let Entries { mut tensors, starts, wrong, .. } = entries;
        if let Some(error) = wrong {
            return Err(error);
        }
        walked.map_err(|error| {
            let (at, what) = json::located(&text, &error);
            self.wrong(at, what)
        })?;
        if let Some((name, number)) = tensors.sort() {
            let offset = self.at + u64::from(starts.get(number).copied().unwrap_or(0));
            return Err(Rule::Duplicate {}.at(Part::Index, offset).of_tensor(name));
        }
        Ok(tensors)
    }

    /// Check one entry, which starts at byte `at`.
    fn tensor(&self, entry: Entry, number: u32, at: u64) -> Result<Tensor> {
        let Entry { name, dtype, shape: dims, offset, size } = entry;
        if let Some(what) = index::wrong_name(&name) {
            return Err(Rule::Name { entry: number, what }.at(Part::Index, at));
        }
        let wrong = |name: String, rule: Rule| Err(rule.at(Part::Index, at).of_tensor(name));
        if dtype != F32 {
            return wrong(
                name,
                Rule::malformed(format!("unknown dtype {dtype:?}; only {F32:?} was written")),
            );
        }
        let dtype = Dtype::F32;
        let Some(expected) = dtype::count(&dims).and_then(|_| dtype.nbytes(&dims)) else {
            return wrong(name, Rule::DimsOverflow { dims });
        };
        if size != expected {
            return wrong(name, Rule::SizeMismatch { dtype, dims, size, expected });
        }
        let start = self.data_offset.checked_add(offset);
        let need = start.and_then(|start| start.checked_add(size)?.checked_add(FOOTER_SIZE));
        let Some(need) = need else {
            return wrong(name, Rule::OffsetOverflow { value: offset, size });
        };
        if need > self.size {
            return Err(Error::truncated(Part::Data, need, self.size).of_tensor(name));
        }
        Ok(Tensor { name, dtype, dims, offset, nbytes: size })
    }
}
