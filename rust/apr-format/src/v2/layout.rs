//! Where everything goes in a file to be written, from names, dtypes and dims alone.

use crate::{
    dtype::Dtype,
    error::{Error, Result},
    v2::{
        FOOTER_SIZE, align,
        header::{self, Header, flags},
        index::{self, Tensor},
        metadata,
    },
};

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dims; empty for a scalar.
    pub dims: Vec<u64>,
}

/// A file to be written: everything but the tensors' bytes.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Header, metadata, index, each padded to 64.
    pub head: Vec<u8>,
    /// The tensors in the order of the file, which is name order.
    pub tensors: Vec<Tensor>,
    /// Length of the file, footer included.
    pub size: u64,
}

impl Layout {
    /// Lay out a file with these tensors, this metadata (JSON text) and these [`flags`] beside the ones
    /// that follow from the tensors.
    ///
    /// # Errors
    /// [`Error::Unwritable`] naming the tensor, for what the format cannot hold; [`Error::Metadata`].
    pub fn new(specs: Vec<Spec>, json: &str, flags: u16) -> Result<Self> {
        if flags & flags::NEVER_WRITTEN != 0 {
            let what = format!("flags {flags:#06x} hold one that is never written");
            return Err(Error::Unwritable { tensor: None, what });
        }
        if json.len() > metadata::MAX_WRITE {
            let what = format!("metadata take {} bytes, at most 16 MiB are written", json.len());
            return Err(Error::Unwritable { tensor: None, what });
        }
        metadata::check(json.as_bytes().to_vec(), header::SIZE)?;
        let mut tensors = specs.into_iter().map(check).collect::<Result<Vec<_>>>()?;
        tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if let Some((twice, _)) = tensors.iter().zip(tensors.iter().skip(1)).find(|(a, b)| a.name == b.name) {
            return Err(unwritable(&twice.name, "is given twice"));
        }
        Self::place(tensors, json, flags).unwrap_or_else(|| {
            let what = "the tensors together pass what a file can hold".into();
            Err(Error::Unwritable { tensor: None, what })
        })
    }

    /// None where the sum of the sizes overflows.
    fn place(mut tensors: Vec<Tensor>, json: &str, flags: u16) -> Option<Result<Self>> {
        let mut index = Vec::new();
        for tensor in &tensors {
            tensor.write(0, &mut index);
        }
        let tensor_index_offset = align(header::SIZE + json.len() as u64)?;
        let data_offset = align(tensor_index_offset.checked_add(index.len() as u64)?)?;
        let mut end = data_offset;
        for tensor in &mut tensors {
            tensor.offset = end;
            end = end.checked_add(align(tensor.nbytes)?)?;
        }
        index.clear();
        for tensor in &tensors {
            tensor.write(data_offset, &mut index);
        }
        let quantised = tensors.iter().any(|tensor| tensor.dtype.is_quantised());
        let header = Header {
            magic: header::MAGIC,
            version: header::VERSION,
            flags: flags | flags::ROW_MAJOR | if quantised { flags::QUANTIZED } else { 0 },
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
        Some(Ok(Self { head, tensors, size: end.checked_add(FOOTER_SIZE)? }))
    }
}

fn unwritable(tensor: &str, what: &str) -> Error {
    Error::Unwritable { tensor: Some(tensor.into()), what: format!("tensor {tensor:?} {what}") }
}

fn check(spec: Spec) -> Result<Tensor> {
    let Spec { name, dtype, dims } = spec;
    if name.is_empty() {
        return Err(unwritable(&name, "has an empty name"));
    }
    if name.len() > index::MAX_NAME {
        return Err(unwritable(
            &name,
            &format!("has a name of {} bytes, at most 256 are allowed", name.len()),
        ));
    }
    if name.contains('\0') {
        return Err(unwritable(&name, "has a NUL in its name"));
    }
    if dims.len() > usize::from(index::MAX_DIMS) {
        return Err(unwritable(&name, &format!("has {} dimensions, at most 8 are allowed", dims.len())));
    }
    let Some(nbytes) = dtype.nbytes(&dims) else {
        return Err(unwritable(&name, &format!("has dims {dims:?}, whose product is out of range")));
    };
    Ok(Tensor { name, dtype, dims, offset: 0, nbytes })
}
