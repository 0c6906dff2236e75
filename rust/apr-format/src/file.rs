//! The reading half of the crate's public face.

use std::{fs, path::Path};

use crate::{
    container::{self, Container},
    contents::cut_short,
    error::{Error, Result},
    index::Tensor,
    keys::Keys,
    quant,
    source::{open_regular, read_vec},
    verify::Findings,
};

/// Open an `.apr` file and check its structure: header, tensor index and bounds.
///
/// The tensor data are not read. [`verify`] checks every byte.
///
/// # Errors
/// The first rule that the file breaks; for a file of another format, which one it is; those of the operating system.
pub fn open(path: impl AsRef<Path>) -> Result<File> {
    File::open_with(path, &Keys::default())
}

/// Check every byte of a file and report on each part. A file that cannot be opened gives a report as well.
///
/// # Errors
/// Only those of the operating system.
pub fn verify(path: impl AsRef<Path>) -> Result<Findings> {
    Ok(container::verify(&open_regular(path.as_ref())?)?)
}

/// An open `.apr` file.
///
/// Tensors are read by position, so that one `File` can be used from several threads.
#[derive(Debug)]
pub struct File(Container<fs::File>);

impl File {
    /// Open a file with keys to decrypt it or to check its signature, which version 1 may need.
    ///
    /// # Errors
    /// Those of [`open`]; [`Rule::Decryption`](crate::Rule::Decryption) or
    /// [`Rule::Signature`](crate::Rule::Signature) for a key that is wrong or that the file has no use for.
    pub fn open_with(path: impl AsRef<Path>, keys: &Keys) -> Result<Self> {
        Container::open_with(open_regular(path.as_ref())?, keys).map(Self)
    }

    /// Return the form of the file, such as `"APR v2"`.
    #[must_use]
    pub fn form(&self) -> &'static str {
        self.0.form().name()
    }

    /// Return the metadata as the text of a JSON object. It is read and checked by each call.
    ///
    /// # Errors
    /// [`Rule::Malformed`](crate::Rule::Malformed) if they are not a JSON object within the limits of the format;
    /// those of the operating system.
    pub fn metadata(&self) -> Result<String> {
        Ok(self.0.metadata()?.into_owned())
    }

    /// Return the number of tensors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.contents().tensors.len()
    }

    /// Whether the file has no tensors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.contents().tensors.is_empty()
    }

    /// Return the names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.contents().tensors.names()
    }

    /// Return the tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor> {
        self.0.contents().tensors.entries().map(|entry| entry.to_tensor())
    }

    /// Return what the index contains about a tensor; `None` if there is no tensor of this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<Tensor> {
        self.0.contents().tensor(name)
    }

    /// Read the stored bytes of a tensor: its values in row-major order, little-endian, or the blocks of a quantized
    /// dtype.
    ///
    /// # Errors
    /// [`Rule::Invalid`](crate::Rule::Invalid) if there is no tensor of this name;
    /// [`Rule::TiedToNothing`](crate::Rule::TiedToNothing); [`Rule::CutShort`](crate::Rule::CutShort) if the file is
    /// shorter than when it was opened; those of the operating system.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let tensor = self.stored(name)?;
        let bytes = read_vec(&self.0.image()?, tensor.offset, tensor.nbytes);
        bytes.map_err(|error| self.reading(error.into()))
    }

    /// Read the values of a quantized tensor as `f32`, in row-major order.
    ///
    /// # Errors
    /// Those of [`File::read`]; [`Rule::Invalid`](crate::Rule::Invalid) if the dtype of the tensor is not
    /// [quantized](crate::Dtype::is_quantized).
    pub fn dequantize(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.stored(name)?;
        let size = usize::try_from(tensor.count()).unwrap_or(usize::MAX);
        let mut values = Vec::new();
        values.try_reserve_exact(size).map_err(|_| std::io::Error::from(std::io::ErrorKind::OutOfMemory))?;
        values.resize(size, 0.0);
        quant::dequantize(&self.0.image()?, &tensor, 0, &mut values).map_err(|error| self.reading(error))?;
        Ok(values)
    }

    /// Return the tensor that has the bytes: the named one, or the embedding that it is tied to.
    fn stored(&self, name: &str) -> Result<Tensor> {
        let tensor = self.tensor(name).ok_or_else(|| Error::invalid("no such tensor").of_tensor(name))?;
        self.0.contents().stored(tensor)
    }

    fn reading(&self, error: Error) -> Error {
        cut_short(self.0.source(), self.0.contents().size, error)
    }
}
