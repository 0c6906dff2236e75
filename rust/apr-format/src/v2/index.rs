//! The tensor index as version 2 stores it: one entry for each tensor, strictly sorted by name.

use crate::{
    dtype::{self, Dtype},
    error::{Error, Part, Result, Rule},
    index::{Index, MAX_DIMS, MAX_NAME, is_tied, wrong_name},
};

/// Bytes of the shortest entry: a name of one byte and no dimensions.
pub const MIN_ENTRY: u64 = 2 + 1 + 1 + 1 + 8 + 8;
/// Bytes of the longest entry: a name of 256 bytes and 8 dimensions.
pub const MAX_ENTRY: u64 = 2 + 256 + 1 + 1 + 8 * 8 + 8 + 8;

/// Where the index and the data are in the file.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Where the index starts.
    pub index_offset: u64,
    /// Where the data start, which is where the index must have ended.
    pub data_offset: u64,
    /// The length of the file.
    pub file_size: u64,
}

/// Read the `count` entries of an index and check all that can be checked without the data.
///
/// The caller has checked that `bytes` could hold so many entries of the shortest kind.
///
/// # Errors
/// The first rule that an entry breaks.
pub fn parse(bytes: Vec<u8>, count: u32, place: Place) -> Result<Index> {
    let mut cursor = Cursor { bytes: &bytes, at: 0, place, entry: 0 };
    // A count that is too large must not allocate more than the file could fill.
    let most = u64::from(count).min(bytes.len() as u64 / MIN_ENTRY);
    let mut starts = Vec::with_capacity(usize::try_from(most).unwrap_or(0));
    let mut previous: Option<&str> = None;
    for entry in 0..count {
        cursor.entry = entry;
        starts.push(cursor.at);
        let start = cursor.offset();
        let name = cursor.check_entry()?;
        if let Some(previous) = previous.filter(|previous| *previous >= name) {
            let rule = if previous == name {
                Rule::Duplicate {}
            } else {
                Rule::Unsorted { previous: previous.to_owned() }
            };
            return Err(rule.at(Part::Index, start).of_tensor(name));
        }
        previous = Some(name);
    }
    Ok(Index::of_entries(bytes, starts, place.data_offset))
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    place: Place,
    /// The number of the current entry.
    entry: u32,
}

impl<'a> Cursor<'a> {
    /// Return the place of the cursor in the file.
    fn offset(&self) -> u64 {
        self.place.index_offset + self.at as u64
    }

    /// Take the next `size` bytes. The error names the start of the entry, because its length may be what is wrong.
    fn take(&mut self, size: usize, start: u64) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let bytes = rest.get(..size).ok_or_else(|| {
            Rule::EntryTooLong { entry: self.entry, limit: self.place.data_offset }.at(Part::Index, start)
        })?;
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

    fn name(&mut self, start: u64) -> Result<&'a str> {
        let entry = self.entry;
        let wrong = |what| Rule::Name { entry, what }.at(Part::Index, start);
        let size = usize::from(u16::from_le_bytes(self.array(start)?));
        // Before the bytes are taken: a wrong length is the cause, an index that is too short the effect.
        if size > MAX_NAME {
            return Err(wrong("is longer than 256 bytes"));
        }
        let name = std::str::from_utf8(self.take(size, start)?).map_err(|_| wrong("is not UTF-8"))?;
        wrong_name(name).map_or(Ok(name), |what| Err(wrong(what)))
    }

    /// Check the next entry and return its name.
    fn check_entry(&mut self) -> Result<&'a str> {
        let start = self.offset();
        let name = self.name(start)?;
        let wrong = |rule: Rule, offset| Err(rule.at(Part::Index, offset).of_tensor(name));
        let offset = self.offset();
        let [id, ndim] = self.array(start)?;
        let Some(dtype) = Dtype::from_id(id) else {
            return wrong(Rule::UnknownDtype { id }, offset);
        };
        if ndim > MAX_DIMS {
            return wrong(Rule::TooManyDims { ndim }, offset + 1);
        }
        let offset = self.offset();
        let mut dims = [0; MAX_DIMS as usize];
        for dim in dims.iter_mut().take(ndim.into()) {
            *dim = self.u64(start)?;
        }
        let dims = dims.get(..usize::from(ndim)).unwrap_or_default();
        if dtype::count(dims).is_none() {
            return wrong(Rule::DimsOverflow { dims: dims.into() }, offset);
        }
        let offset = self.offset();
        let value = self.u64(start)?;
        let size = self.u64(start)?;
        check_size(name, dtype, dims, size)
            .map_err(|rule| rule.at(Part::Index, offset + 8).of_tensor(name))?;
        self.check_place(name, value, size, offset)?;
        Ok(name)
    }

    /// Check that the tensor is aligned and that it ends, with its padding, within the file.
    fn check_place(&self, name: &str, value: u64, size: u64, offset: u64) -> Result<()> {
        let wrong = |rule: Rule| Err(rule.at(Part::Index, offset).of_tensor(name));
        if !value.is_multiple_of(super::ALIGN) {
            return wrong(Rule::Misaligned { value });
        }
        let start = self.place.data_offset.checked_add(value);
        let end = start.and_then(|start| start.checked_add(super::align(size)?));
        match end {
            None => wrong(Rule::OffsetOverflow { value, size }),
            Some(end) if end > self.place.file_size => {
                Err(Error::truncated(Part::Data, end, self.place.file_size).of_tensor(name))
            }
            Some(_) => Ok(()),
        }
    }
}

/// Check that the stored size is the one that dtype and dimensions imply.
fn check_size(name: &str, dtype: Dtype, dims: &[u64], size: u64) -> std::result::Result<(), Rule> {
    let expected = dtype.nbytes(dims);
    // Some writers store K-quants flat, without padding each row.
    if expected == Some(size) || dtype.nbytes_flat(dims) == Some(size) || is_tied(name, dims, size) {
        return Ok(());
    }
    let dims = dims.to_vec();
    Err(match expected {
        Some(expected) => Rule::SizeMismatch { dtype, dims, size, expected },
        None => Rule::DimsOverflow { dims },
    })
}
