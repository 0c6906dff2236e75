//! The tensors of a file of any form, sorted by name.

use crate::{
    dtype::{self, Dtype},
    error::{Part, Result, Rule},
};

/// Longest name, in bytes.
pub const MAX_NAME: usize = 256;
/// Most dimensions.
pub const MAX_DIMS: u8 = 8;
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
    /// An index of entries that were checked, which start at these bytes; their offsets count from `base`.
    pub(crate) fn of_entries(entries: Vec<u8>, starts: Vec<usize>, base: u64) -> Self {
        Self { entries, starts, base }
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

/// No two tensors share a byte.
///
/// # Errors
/// [`Rule::Overlap`] naming both.
pub fn check_overlaps(index: &Index) -> Result<()> {
    // In range: the reader has added the two.
    let with_bytes = index.entries().filter(|entry| entry.nbytes > 0);
    let mut places: Vec<_> =
        with_bytes.map(|entry| (entry.offset, entry.offset + entry.nbytes, entry.name)).collect();
    places.sort_unstable();
    let text = |name| String::from_utf8_lossy(name).into_owned();
    for (&(_, end, earlier), &(offset, _, later)) in places.iter().zip(places.iter().skip(1)) {
        if offset < end {
            let rule = Rule::Overlap { other: text(earlier), end };
            return Err(rule.at(Part::Data, offset).of_tensor(text(later)));
        }
    }
    Ok(())
}
