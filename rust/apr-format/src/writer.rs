//! The writing half of the crate's public face.

use std::path::Path;

use crate::{
    atomic::AtomicFile,
    dtype::Dtype,
    error::Result,
    v2::{
        layout::{Layout, Spec},
        stream::Stream,
        write,
    },
};

/// A tensor to write: name, dtype, dimensions and bytes.
#[derive(Debug, Clone, Copy)]
pub struct TensorData<'a> {
    /// The name: 1 to 256 bytes of UTF-8 without NUL.
    pub name: &'a str,
    /// The element type.
    pub dtype: Dtype,
    /// The dimensions, at most 8; none for a scalar.
    pub dims: &'a [u64],
    /// The values in row-major order, little-endian, or the blocks of a quantized dtype.
    pub bytes: &'a [u8],
}

impl TensorData<'_> {
    fn spec(&self) -> Spec {
        Spec { name: self.name.into(), dtype: self.dtype, dims: self.dims.into() }
    }
}

/// Write a version 2 file. `metadata` is the text of a JSON object.
///
/// The file appears under its name when it is complete and on disk; until then, readers see the previous file. The same
/// tensors and metadata give the same bytes, in whichever order the tensors are.
///
/// # Errors
/// [`Rule::Invalid`](crate::Rule::Invalid) for what the format does not allow and for bytes that do not match their
/// dtype and dimensions; [`Rule::Malformed`](crate::Rule::Malformed) for metadata that are not a JSON object; those of
/// the operating system. The previous file is then still there.
pub fn save(path: impl AsRef<Path>, tensors: &[TensorData<'_>], metadata: &str) -> Result<()> {
    // Checked before anything is written: the writer compares only one tensor at a time with its bytes.
    let layout = Layout::new(tensors.iter().map(TensorData::spec).collect(), metadata, 0)?;
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_unstable_by_key(|tensor| tensor.name);
    let mut writer = write::Writer::new(AtomicFile::create(path.as_ref())?, layout)?;
    for tensor in sorted {
        writer.tensor(tensor.bytes)?;
    }
    Ok(writer.finish()?.commit()?)
}

/// Writes a version 2 file whose tensors become known one by one.
///
/// A tensor goes to disk when it is added, so that memory does not grow with the file. A `Writer` that is dropped
/// before [`Writer::finish`] leaves nothing behind.
#[derive(Debug)]
pub struct Writer(Stream);

impl Writer {
    /// Start to write a file. The previous file of this name stays until [`Writer::finish`].
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        Stream::create(path.as_ref()).map(Self)
    }

    /// Write one tensor.
    ///
    /// # Errors
    /// [`Rule::Invalid`](crate::Rule::Invalid) for a name that was already added, for what the format does not allow
    /// and for bytes that do not match their dtype and dimensions: the writer can still be used. Those of the operating
    /// system: it cannot.
    pub fn add(&mut self, tensor: TensorData<'_>) -> Result<()> {
        self.0.add(tensor.spec(), tensor.bytes)
    }

    /// Complete the file and put it in place. `metadata` is the text of a JSON object.
    ///
    /// # Errors
    /// [`Rule::Malformed`](crate::Rule::Malformed) for metadata that are not a JSON object; those of the operating
    /// system. The previous file is then still there.
    pub fn finish(self, metadata: &str) -> Result<()> {
        self.0.finish(metadata, 0)
    }
}
