//! The layout of a file to be written, which follows from names, dtypes and dimensions alone.

use crate::{
    contents::FOOTER_SIZE,
    dtype::Dtype,
    error::{Error, Result},
    index::{self, Tensor},
    json::{MAX_WRITE, check_object},
    v2::{
        align,
        header::{self, Header, flags},
    },
};

/// A tensor to be written, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// The name.
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// The dimensions; none for a scalar.
    pub dims: Vec<u64>,
}

/// A file to be written, without the bytes of the tensors.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Header, metadata and index, each padded to a multiple of 64 bytes.
    pub head: Vec<u8>,
    /// The tensors, sorted by name.
    pub tensors: Vec<Tensor>,
    /// The length of the file, footer included.
    pub size: u64,
}

impl Layout {
    /// Lay out a file. `json` is the text of the metadata; `flags` are set in addition to those that follow from the
    /// tensors.
    ///
    /// # Errors
    /// [`Rule::Invalid`] for what the format does not allow; [`Rule::Malformed`] for invalid metadata.
    pub fn new(specs: Vec<Spec>, json: &str, flags: u16) -> Result<Self> {
        let mut tensors = specs.into_iter().map(check).collect::<Result<Vec<_>>>()?;
        tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if let Some((twice, _)) = tensors.iter().zip(tensors.iter().skip(1)).find(|(a, b)| a.name == b.name) {
            return Err(given_twice(&twice.name));
        }
        let mut size = 0;
        for tensor in &mut tensors {
            tensor.offset = size;
            size = end_of(tensor).ok_or_else(too_large)?;
        }
        Self::around(tensors, size, json, flags)
    }

    /// Lay out a file around existing data of `size` bytes. The tensors must be sorted by name, and their offsets must
    /// count from the start of the data.
    ///
    /// # Errors
    /// Those of [`Self::new`].
    pub fn around(tensors: Vec<Tensor>, size: u64, json: &str, flags: u16) -> Result<Self> {
        if flags & flags::NEVER_WRITTEN != 0 {
            let what = format!("flags {flags:#06x} contain one that cannot be written");
            return Err(Error::invalid(what));
        }
        if json.len() > MAX_WRITE {
            let what = format!("the metadata takes {} bytes, but at most 16 MiB can be written", json.len());
            return Err(Error::invalid(what));
        }
        check_object(json, header::SIZE)?;
        Self::place(tensors, size, json, flags).ok_or_else(too_large)
    }

    /// Compute all places; `None` if a sum of sizes overflows.
    fn place(mut tensors: Vec<Tensor>, size: u64, json: &str, flags: u16) -> Option<Self> {
        let mut index = Vec::new();
        for tensor in &tensors {
            tensor.write(&mut index);
        }
        let tensor_index_offset = align(header::SIZE + json.len() as u64)?;
        let data_offset = align(tensor_index_offset.checked_add(index.len() as u64)?)?;
        for tensor in &mut tensors {
            tensor.offset = tensor.offset.checked_add(data_offset)?;
        }
        let quantized = tensors.iter().any(|tensor| tensor.dtype.is_quantized());
        let header = Header {
            magic: header::MAGIC,
            version: header::VERSION,
            flags: flags | flags::ROW_MAJOR | if quantized { flags::QUANTIZED } else { 0 },
            tensor_count: u32::try_from(tensors.len()).ok()?,
            metadata_offset: header::SIZE,
            metadata_size: u32::try_from(json.len()).ok()?,
            tensor_index_offset,
            data_offset,
            checksum: 0,
            reserved: [0; 20],
        };
        let mut head = header.to_bytes().to_vec();
        head.extend(json.as_bytes());
        head.resize(usize::try_from(tensor_index_offset).ok()?, 0);
        head.extend(index);
        head.resize(usize::try_from(data_offset).ok()?, 0);
        let size = data_offset.checked_add(size)?.checked_add(FOOTER_SIZE)?;
        Some(Self { head, tensors, size })
    }
}

/// Return where the padding of a tensor ends, counted like its offset; `None` on overflow.
pub(crate) fn end_of(tensor: &Tensor) -> Option<u64> {
    tensor.offset.checked_add(align(tensor.nbytes)?)
}

pub(crate) fn too_large() -> Error {
    Error::invalid("the tensors together are larger than a file can be")
}

pub(crate) fn given_twice(tensor: &str) -> Error {
    unwritable(tensor, "a tensor of that name was already added")
}

fn unwritable(tensor: &str, what: &str) -> Error {
    Error::invalid(what).of_tensor(tensor)
}

/// Check what is known before the tensor has a place.
pub(crate) fn check(spec: Spec) -> Result<Tensor> {
    let Spec { name, dtype, dims } = spec;
    if name.is_empty() {
        return Err(unwritable(&name, "the name is empty"));
    }
    if name.len() > index::MAX_NAME {
        return Err(unwritable(
            &name,
            &format!("the name is {} bytes long; at most 256 are allowed", name.len()),
        ));
    }
    if name.contains('\0') {
        return Err(unwritable(&name, "the name contains a NUL"));
    }
    if dims.len() > usize::from(index::MAX_DIMS) {
        return Err(unwritable(&name, &format!("{} dimensions; at most 8 are allowed", dims.len())));
    }
    let Some(nbytes) = dtype.nbytes(&dims) else {
        return Err(unwritable(&name, &format!("the product of its dimensions {dims:?} is out of range")));
    };
    Ok(Tensor { name, dtype, dims, offset: 0, nbytes })
}
