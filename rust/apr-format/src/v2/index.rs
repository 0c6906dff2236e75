//! The tensor index as v2 stores it: one entry a tensor, strictly sorted by name.

use crate::{
    dtype::{self, Dtype},
    error::{Error, Part, Result, Rule},
    index::{Index, MAX_DIMS, MAX_NAME, Tensor, wrong_name},
};

/// Bytes of the shortest entry: a name of one byte, no dims.
pub const MIN_ENTRY: u64 = 2 + 1 + 1 + 1 + 8 + 8;
/// Bytes of the longest entry.
pub const MAX_ENTRY: u64 = 2 + 256 + 1 + 1 + 8 * 8 + 8 + 8;

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

/// Read `count` entries from the index's bytes, each with every check that needs no other tensor's
/// bytes. The caller has checked that so many entries of the shortest kind are not longer than the bytes.
///
/// # Errors
/// The first entry that breaks a rule.
pub fn parse(bytes: Vec<u8>, count: u32, place: Place) -> Result<Index> {
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
            let rule = if previous == tensor.name { Rule::Duplicate {} } else { Rule::Unsorted { previous } };
            return Err(rule.at(Part::Index, start).of_tensor(tensor.name));
        }
        previous = Some(tensor.name);
    }
    Ok(Index::of_entries(bytes, starts, place.data_offset))
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
        let bytes = self.bytes.get(self.at..).and_then(|rest| rest.get(..size)).ok_or_else(|| {
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

    fn name(&mut self, start: u64) -> Result<String> {
        let entry = self.entry;
        let wrong = |what| Rule::Name { entry, what }.at(Part::Index, start);
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
            return Err(Rule::UnknownDtype { id }.at(Part::Index, offset).of_tensor(name));
        };
        if ndim > MAX_DIMS {
            return Err(Rule::TooManyDims { ndim }.at(Part::Index, offset + 1).of_tensor(name));
        }
        let offset = self.offset();
        let dims = (0..ndim).map(|_| self.u64(start)).collect::<Result<Vec<_>>>()?;
        if dtype::count(&dims).is_none() {
            return Err(Rule::DimsOverflow { dims }.at(Part::Index, offset).of_tensor(name));
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
        let wrong = |rule: Rule| Err(rule.at(Part::Index, offset).of_tensor(&tensor.name));
        let size = tensor.nbytes;
        if !value.is_multiple_of(super::ALIGN) {
            return wrong(Rule::Misaligned { value });
        }
        let found = self.place.data_offset.checked_add(value);
        let need = super::align(size).and_then(|padded| found?.checked_add(padded));
        let (Some(found), Some(need)) = (found, need) else {
            return wrong(Rule::OffsetOverflow { value, size });
        };
        if need > self.place.file_size {
            return Err(Error::truncated(Part::Data, need, self.place.file_size).of_tensor(&tensor.name));
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
    let dims = dims.clone();
    let rule = match expected {
        Some(expected) => Rule::SizeMismatch { dtype: *dtype, dims, size: *size, expected },
        None => Rule::DimsOverflow { dims },
    };
    Err(rule.at(Part::Index, offset).of_tensor(name))
}
