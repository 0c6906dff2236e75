//! The tensor index of an open file, which all forms of the format share.

use crate::{
    dtype::{self, Dtype},
    error::{Part, Result, Rule},
};

/// The longest name, in bytes.
pub const MAX_NAME: usize = 256;
/// The largest number of dimensions.
pub const MAX_DIMS: u8 = 8;
/// The only tensor that may have a shape but no bytes: it is then tied to [`EMBEDDING`].
pub const HEAD: &str = "lm_head.weight";
/// The tensor whose values a tied [`HEAD`] has.
pub const EMBEDDING: &str = "model.embed_tokens.weight";

/// A tensor as the index describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// The name.
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// The dimensions; none for a scalar.
    pub dims: Vec<u64>,
    /// Where the bytes start, counted from the start of the file.
    pub offset: u64,
    /// The number of stored bytes, without padding.
    pub nbytes: u64,
}

impl Tensor {
    /// Return the number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        // Checked when the index was read.
        dtype::count(&self.dims).unwrap_or(0)
    }

    /// Whether the tensor has no bytes of its own, but the values of the embedding.
    #[must_use]
    pub fn is_tied(&self) -> bool {
        is_tied(&self.name, &self.dims, self.nbytes)
    }

    /// Return the number of columns if each row is padded to whole blocks, as in K-quants of two dimensions.
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

    /// Append the entry as version 2 stores it. Its offset must count from the start of the data.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        // The constructors of tensors check that name and dimensions are within their limits.
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

/// Whether a tensor has a shape but no bytes, which only the output projection may have.
pub(crate) fn is_tied(name: &str, dims: &[u64], nbytes: u64) -> bool {
    name == HEAD && nbytes == 0 && dtype::count(dims).is_some_and(|count| count > 0)
}

/// Return what is wrong with a tensor name, in any form of the format.
pub(crate) fn wrong_name(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("is empty"),
        _ if name.len() > MAX_NAME => Some("is longer than 256 bytes"),
        _ if name.contains('\0') => Some("contains a NUL"),
        _ => None,
    }
}

/// The tensors of a file, sorted by name.
///
/// The index holds the entries as version 2 stores them and where each one starts. That takes half the memory of as
/// many [`Tensor`]s, so that an index full of empty tensors costs at most twice the size of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    bytes: Vec<u8>,
    starts: Vec<usize>,
    /// What the offsets in the entries count from.
    base: u64,
}

impl Index {
    /// Make an index of checked, sorted entries, which start at `starts`. Their offsets count from `base`.
    pub(crate) fn of_entries(bytes: Vec<u8>, starts: Vec<usize>, base: u64) -> Self {
        Self { bytes, starts, base }
    }

    /// Make an empty index whose offsets will count from `base`.
    pub(crate) fn counting_from(base: u64) -> Self {
        Self { base, ..Self::default() }
    }

    /// Append a checked tensor. Its offset counts from the base.
    pub(crate) fn push(&mut self, tensor: &Tensor) {
        self.starts.push(self.bytes.len());
        tensor.write(&mut self.bytes);
    }

    /// Sort the appended tensors by name. Return the first name that occurs twice, and the number, in the order of
    /// appending, of its second tensor.
    pub(crate) fn sort(&mut self) -> Option<(String, usize)> {
        let mut starts = std::mem::take(&mut self.starts);
        let name = |start: usize| self.entry(start).map(|entry| entry.name);
        starts.sort_unstable_by(|&a, &b| (name(a), a).cmp(&(name(b), b)));
        let second = starts.windows(2).find_map(|pair| match *pair {
            [first, second] if name(first) == name(second) => Some(second),
            _ => None,
        });
        let repeated = second.and_then(|at| {
            let number = starts.iter().filter(|&&start| start < at).count();
            Some((name(at)?.to_owned(), number))
        });
        self.starts = starts;
        repeated
    }

    /// Return the number of tensors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is no tensor.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Return the names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries().map(|entry| entry.name)
    }

    /// Return the entries, sorted by name. Nothing is allocated for them.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.starts.iter().filter_map(|&start| self.entry(start))
    }

    /// Return the entry of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Entry<'_>> {
        let key = |&start: &usize| self.entry(start).map(|entry| entry.name);
        let position = self.starts.binary_search_by_key(&Some(name), key).ok()?;
        self.entry(*self.starts.get(position)?)
    }

    /// Return the entry that starts at a byte. It is never `None`: all entries were checked or written here.
    fn entry(&self, start: usize) -> Option<Entry<'_>> {
        let (size, rest) = self.bytes.get(start..)?.split_first_chunk()?;
        let (name, rest) = rest.split_at_checked(u16::from_le_bytes(*size).into())?;
        let ([id, ndim], rest) = rest.split_first_chunk()?;
        let (dims, rest) = rest.as_chunks().0.split_at_checked(usize::from(*ndim))?;
        let [offset, nbytes] = rest.first_chunk()?.map(u64::from_le_bytes);
        Some(Entry {
            name: std::str::from_utf8(name).ok()?,
            dtype: Dtype::from_id(*id)?,
            dims,
            offset: self.base.checked_add(offset)?,
            nbytes,
        })
    }
}

/// A tensor of an [`Index`], borrowed from it.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// The name.
    pub name: &'a str,
    /// The element type.
    pub dtype: Dtype,
    dims: &'a [[u8; 8]],
    /// Where the bytes start, counted from the start of the file.
    pub offset: u64,
    /// The number of stored bytes, without padding.
    pub nbytes: u64,
}

impl Entry<'_> {
    /// Return the dimensions; none for a scalar.
    #[must_use]
    pub fn dims(&self) -> impl ExactSizeIterator<Item = u64> {
        self.dims.iter().map(|dim| u64::from_le_bytes(*dim))
    }

    /// Return the number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        // Cannot overflow: the reader has checked the product, but without the zeros in it.
        if self.dims().any(|dim| dim == 0) { 0 } else { self.dims().product() }
    }

    /// Whether the tensor has no bytes of its own, but the values of the embedding.
    #[must_use]
    pub fn is_tied(&self) -> bool {
        self.name == HEAD && self.nbytes == 0 && self.count() > 0
    }

    /// Copy the entry.
    #[must_use]
    pub fn to_tensor(&self) -> Tensor {
        Tensor {
            name: self.name.to_owned(),
            dtype: self.dtype,
            dims: self.dims().collect(),
            offset: self.offset,
            nbytes: self.nbytes,
        }
    }
}

/// Check that no two tensors share a byte.
///
/// # Errors
/// [`Rule::Overlap`].
pub fn check_overlaps(index: &Index) -> Result<()> {
    // The sums cannot overflow: each tensor was checked to end within the file.
    let mut places: Vec<_> = index
        .entries()
        .filter(|entry| entry.nbytes > 0)
        .map(|entry| (entry.offset, entry.offset + entry.nbytes, entry.name))
        .collect();
    places.sort_unstable();
    for (&(_, end, earlier), &(offset, _, later)) in places.iter().zip(places.iter().skip(1)) {
        if offset < end {
            let rule = Rule::Overlap { other: earlier.to_owned(), end };
            return Err(rule.at(Part::Data, offset).of_tensor(later));
        }
    }
    Ok(())
}
