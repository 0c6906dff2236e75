//! The tensor index: one entry a tensor, strictly sorted by name.

use std::fmt;

use serde::{
    Deserialize,
    de::{Deserializer, Error as _, SeqAccess, Unexpected, Visitor},
};

use crate::{
    dtype::{self, Dtype},
    error::{Error, Part, Result},
};

/// Longest name, in bytes.
pub const MAX_NAME: usize = 256;
/// Most dimensions.
pub const MAX_DIMS: u8 = 8;
/// Bytes of the shortest entry: a name of one byte, no dims.
pub const MIN_ENTRY: u64 = 2 + 1 + 1 + 1 + 8 + 8;
/// Bytes of the longest entry.
pub const MAX_ENTRY: u64 = 2 + 256 + 1 + 1 + 8 * 8 + 8 + 8;
/// The one name whose values may be left out under a shape: it is then tied to [`EMBEDDING`].
pub const HEAD: &str = "lm_head.weight";
/// The tensor that an empty head stands for.
pub const EMBEDDING: &str = "model.embed_tokens.weight";

/// What the index says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dims; empty for a scalar.
    pub dims: Vec<u64>,
    /// Where its bytes start, from the start of the file.
    pub offset: u64,
    /// Its bytes, without padding.
    pub nbytes: u64,
}

impl Tensor {
    /// Number of values. The reader has checked that it is in range.
    #[must_use]
    pub fn count(&self) -> u64 {
        dtype::count(&self.dims).unwrap_or(0)
    }

    /// Whether the entry stands for the embedding: no bytes under a shape that has values.
    #[must_use]
    pub fn is_tied(&self) -> bool {
        self.name == HEAD && self.nbytes == 0 && self.count() > 0
    }

    /// Columns of a K-quant whose rows are padded to whole blocks; None for every other layout.
    #[must_use]
    pub fn padded_columns(&self) -> Option<u64> {
        match (self.dtype, self.dims.as_slice()) {
            (Dtype::Q4K | Dtype::Q6K, &[_, columns])
                if Some(self.nbytes) == self.dtype.nbytes(&self.dims) =>
            {
                Some(columns)
            }
            _ => None,
        }
    }

    /// Append the entry as written; the offset must count from the start of the data.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        // The writer has checked that both fit.
        out.extend(u16::try_from(self.name.len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend(self.name.as_bytes());
        out.push(self.dtype.id());
        out.push(u8::try_from(self.dims.len()).unwrap_or(u8::MAX));
        for dim in &self.dims {
            out.extend(dim.to_le_bytes());
        }
        out.extend(self.offset.to_le_bytes());
        out.extend(self.nbytes.to_le_bytes());
    }
}

/// What is wrong with a name in any form of the container.
pub(crate) fn wrong_name(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("is empty"),
        _ if name.len() > MAX_NAME => Some("is longer than 256 bytes"),
        _ if name.contains('\0') => Some("holds a NUL"),
        _ => None,
    }
}

/// A number from JSON. A text in its place is refused without being quoted: it may be as long as the file.
struct Number(u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        number(deserializer).map(Self)
    }
}

/// As `Number`.
pub(crate) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<u64, D::Error> {
    struct Digits;
    impl Visitor<'_> for Digits {
        type Value = u64;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a whole number")
        }

        fn visit_u64<E>(self, number: u64) -> std::result::Result<u64, E> {
            Ok(number)
        }

        fn visit_i64<E: serde::de::Error>(self, number: i64) -> std::result::Result<u64, E> {
            Err(E::invalid_value(Unexpected::Signed(number), &self))
        }

        fn visit_str<E: serde::de::Error>(self, _: &str) -> std::result::Result<u64, E> {
            Err(E::custom("a text where a whole number belongs"))
        }
    }
    deserializer.deserialize_any(Digits) // asked for a number, serde_json would quote a text
}

/// Dims from JSON, at most eight: a longer list is not kept while it is read.
pub(crate) fn dims<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<u64>, D::Error> {
    struct Dims;
    impl<'de> Visitor<'de> for Dims {
        type Value = Vec<u64>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a list of dims")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Vec<u64>, A::Error> {
            let mut dims = Vec::new();
            while let Some(Number(dim)) = items.next_element()? {
                if dims.len() == usize::from(MAX_DIMS) {
                    return Err(A::Error::custom(format_args!("more than {MAX_DIMS} dims")));
                }
                dims.push(dim);
            }
            Ok(dims)
        }

        fn visit_str<E: serde::de::Error>(self, _: &str) -> std::result::Result<Vec<u64>, E> {
            Err(E::custom("a text where a list of dims belongs"))
        }
    }
    deserializer.deserialize_any(Dims) // as there
}

/// Where the index and the data stand.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Where the index starts.
    pub index_offset: u64,
    /// Where the data start, and the index ends at the latest.
    pub data_offset: u64,
    /// Length of the file.
    pub file_size: u64,
}

/// The tensors of a file, sorted by name.
///
/// Kept as entries like those of the file, found by where each starts: half of what as many [`Tensor`]s
/// take, so that an index full of empty tensors costs no more than twice the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    entries: Vec<u8>,
    starts: Vec<usize>,
    /// What offsets in the entries count from.
    base: u64,
}

impl Index {
    /// Read `count` entries from the index's bytes, each with every check that needs no other tensor's
    /// bytes. The caller has checked that so many entries of the shortest kind are not longer than the bytes.
    ///
    /// # Errors
    /// The first entry that breaks a rule.
    pub fn parse(bytes: Vec<u8>, count: u32, place: Place) -> Result<Self> {
        let mut cursor = Cursor { bytes: &bytes, at: 0, place, entry: 0 };
        let most = u64::from(count).min(bytes.len() as u64 / MIN_ENTRY);
        let mut starts = Vec::with_capacity(usize::try_from(most).unwrap_or(0));
        let mut previous: Option<String> = None;
        for entry in 0..count {
            cursor.entry = entry;
            let start = cursor.offset();
            starts.push(cursor.at);
            let tensor = cursor.tensor(start)?;
            if let Some(previous) = previous.filter(|previous| *previous >= tensor.name) {
                let what = if previous == tensor.name { "repeats" } else { "comes after" };
                return Err(Error::Unsorted { tensor: tensor.name, previous, what, offset: start });
            }
            previous = Some(tensor.name);
        }
        Ok(Self { entries: bytes, starts, base: place.data_offset })
    }

    /// An index without entries, whose offsets will count from `base`.
    pub(crate) fn counting_from(base: u64) -> Self {
        Self { base, ..Self::default() }
    }

    /// Append a tensor, which is checked; its offset counts from the base.
    pub(crate) fn push(&mut self, tensor: &Tensor) {
        self.starts.push(self.entries.len());
        tensor.write(&mut self.entries);
    }

    /// Sort by name what was appended. Where a name was appended twice: which one, and as the how manyeth.
    pub(crate) fn sort(&mut self) -> Option<(String, usize)> {
        let mut starts = std::mem::take(&mut self.starts);
        let name = |start: usize| self.entry(start).map(|entry| entry.name);
        starts.sort_unstable_by(|&a, &b| (name(a), a).cmp(&(name(b), b)));
        let repeated = starts.windows(2).find_map(|pair| match *pair {
            [first, second] if name(first) == name(second) => Some(second),
            _ => None,
        });
        let repeated = repeated.and_then(|at| {
            let before = starts.iter().filter(|&&start| start < at).count();
            Some((self.entry(at)?.tensor()?.name, before))
        });
        self.starts = starts;
        repeated
    }

    /// The number of tensors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is no tensor.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries().filter_map(|entry| std::str::from_utf8(entry.name).ok())
    }

    /// The tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = Tensor> {
        self.entries().filter_map(|entry| entry.tensor())
    }

    /// The tensor of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Tensor> {
        let key = |&start: &usize| self.entry(start).map(|entry| entry.name);
        let found = self.starts.binary_search_by_key(&Some(name.as_bytes()), key).ok()?;
        self.entry(*self.starts.get(found)?)?.tensor()
    }

    // What follows reads entries that were checked or written here: none is ever None.

    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.starts.iter().filter_map(|&start| self.entry(start))
    }

    fn entry(&self, start: usize) -> Option<Entry<'_>> {
        let (size, rest) = self.entries.get(start..)?.split_first_chunk()?;
        let (name, rest) = rest.split_at_checked(u16::from_le_bytes(*size).into())?;
        let ([id, ndim], rest) = rest.split_first_chunk()?;
        let (dims, rest) = rest.as_chunks().0.split_at_checked(usize::from(*ndim))?;
        let [offset, nbytes] = rest.first_chunk()?.map(u64::from_le_bytes);
        Some(Entry { name, id: *id, dims, offset: self.base.checked_add(offset)?, nbytes })
    }
}

/// An entry where it lies.
struct Entry<'a> {
    name: &'a [u8],
    id: u8,
    dims: &'a [[u8; 8]],
    /// From the start of the file.
    offset: u64,
    nbytes: u64,
}

impl Entry<'_> {
    fn tensor(&self) -> Option<Tensor> {
        Some(Tensor {
            name: std::str::from_utf8(self.name).ok()?.to_owned(),
            dtype: Dtype::from_id(self.id)?,
            dims: self.dims.iter().map(|dim| u64::from_le_bytes(*dim)).collect(),
            offset: self.offset,
            nbytes: self.nbytes,
        })
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    place: Place,
    entry: u32,
}

impl<'a> Cursor<'a> {
    /// Where the cursor is in the file.
    fn offset(&self) -> u64 {
        self.place.index_offset + self.at as u64
    }

    fn take(&mut self, size: usize, start: u64) -> Result<&'a [u8]> {
        let bytes = self
            .bytes
            .get(self.at..)
            .and_then(|rest| rest.get(..size))
            .ok_or(Error::EntryTooLong { entry: self.entry, offset: start, limit: self.place.data_offset })?;
        self.at += size;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, start: u64) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, start)?);
        Ok(array)
    }

    fn u64(&mut self, start: u64) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(start)?))
    }

    fn name(&mut self, start: u64) -> Result<String> {
        let entry = self.entry;
        let wrong = |what| Error::Name { entry, offset: start, what };
        let size = usize::from(u16::from_le_bytes(self.array(start)?));
        if size == 0 {
            return Err(wrong("is empty"));
        }
        if size > MAX_NAME {
            return Err(wrong("is longer than 256 bytes"));
        }
        let name = std::str::from_utf8(self.take(size, start)?).map_err(|_| wrong("is not UTF-8"))?;
        wrong_name(name).map_or(Ok(name.to_owned()), |what| Err(wrong(what)))
    }

    fn tensor(&mut self, start: u64) -> Result<Tensor> {
        let name = self.name(start)?;
        let offset = self.offset();
        let [id, ndim] = self.array(start)?;
        let Some(dtype) = Dtype::from_id(id) else {
            return Err(Error::UnknownDtype { tensor: name, id, offset });
        };
        if ndim > MAX_DIMS {
            return Err(Error::TooManyDims { tensor: name, ndim, offset: offset + 1 });
        }
        let offset = self.offset();
        let dims = (0..ndim).map(|_| self.u64(start)).collect::<Result<Vec<_>>>()?;
        if dtype::count(&dims).is_none() {
            return Err(Error::DimsOverflow { tensor: name, dims, offset });
        }
        let offset = self.offset();
        let value = self.u64(start)?;
        let nbytes = self.u64(start)?;
        let mut tensor = Tensor { name, dtype, dims, offset: 0, nbytes };
        check_size(&tensor, offset + 8)?;
        tensor.offset = self.locate(&tensor, value, offset)?;
        Ok(tensor)
    }

    /// Where the tensor starts in the file, checked with its padding against the file's end.
    fn locate(&self, tensor: &Tensor, value: u64, offset: u64) -> Result<u64> {
        let Tensor { name, nbytes, .. } = tensor;
        if !value.is_multiple_of(super::ALIGN) {
            return Err(Error::Misaligned { tensor: name.clone(), value, offset });
        }
        let found = self.place.data_offset.checked_add(value);
        let need = super::align(*nbytes).and_then(|padded| found?.checked_add(padded));
        let (Some(found), Some(need)) = (found, need) else {
            return Err(Error::OffsetOverflow { tensor: name.clone(), value, size: *nbytes, offset });
        };
        if need > self.place.file_size {
            return Err(Error::Truncated {
                part: Part::Data,
                what: format!("tensor {name:?} ({nbytes} bytes from byte {found}, padded to 64)"),
                tensor: Some(name.clone()),
                need,
                have: self.place.file_size,
            });
        }
        Ok(found)
    }
}

/// The stored size is the one that dtype and dims imply, or none at all for a tied head.
fn check_size(tensor: &Tensor, offset: u64) -> Result<()> {
    let Tensor { name, dtype, dims, nbytes: size, .. } = tensor;
    let expected = dtype.nbytes(dims);
    if expected == Some(*size) || dtype.nbytes_flat(dims) == Some(*size) || tensor.is_tied() {
        return Ok(());
    }
    Err(match expected {
        Some(expected) => Error::SizeMismatch {
            tensor: name.clone(),
            dtype: dtype.name(),
            dims: dims.clone(),
            size: *size,
            expected,
            offset,
        },
        None => Error::DimsOverflow { tensor: name.clone(), dims: dims.clone(), offset },
    })
}

/// No two tensors share a byte.
///
/// # Errors
/// [`Error::Overlap`] naming both.
pub fn check_overlaps(index: &Index) -> Result<()> {
    // In range: the reader has added the two.
    let with_bytes = index.entries().filter(|entry| entry.nbytes > 0);
    let mut places: Vec<_> =
        with_bytes.map(|entry| (entry.offset, entry.offset + entry.nbytes, entry.name)).collect();
    places.sort_unstable();
    let text = |name| String::from_utf8_lossy(name).into_owned();
    for (&(_, end, earlier), &(offset, _, later)) in places.iter().zip(places.iter().skip(1)) {
        if offset < end {
            return Err(Error::Overlap { tensor: text(later), other: text(earlier), offset, end });
        }
    }
    Ok(())
}
