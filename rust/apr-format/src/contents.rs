//! The contents of an open file, which all forms of the format share.

use std::{borrow::Cow, io};

use crate::{
    error::{Error, Part, Result, Rule},
    index::{self, Index, Tensor},
    json,
    source::{Source, read_vec},
};

/// The size in bytes of the footer, a CRC32 at the end.
pub const FOOTER_SIZE: u64 = 4;

/// What a file contains, without the bytes of the tensors.
#[derive(Debug, Clone)]
pub struct Contents {
    pub(crate) metadata: Metadata,
    /// The tensors, sorted by name.
    pub tensors: Index,
    /// Where the footer is and its CRC32; `None` for an old file without a footer.
    pub footer: Option<(u64, u32)>,
    /// The length of the file.
    pub size: u64,
}

/// The metadata of an open file.
#[derive(Debug, Clone)]
pub(crate) enum Metadata {
    /// JSON text that is already checked, for forms that cannot be opened without reading it.
    Checked(String),
    /// The place of the JSON text, which is read and checked when it is used.
    Stored { offset: u64, size: u32 },
}

impl Metadata {
    pub(crate) fn read(&self, source: &(impl Source + ?Sized)) -> Result<Cow<'_, str>> {
        match *self {
            Self::Checked(ref text) => Ok(Cow::Borrowed(text)),
            Self::Stored { offset, size } => {
                json::check(read_vec(source, offset, u64::from(size))?, offset).map(Cow::Owned)
            }
        }
    }
}

impl Contents {
    /// Return the tensor of this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<Tensor> {
        self.tensors.get(name).map(|entry| entry.to_tensor())
    }

    /// Return the JSON text of the metadata, checked. `source` must be what the file was opened from.
    ///
    /// # Errors
    /// [`Rule::Malformed`], [`Rule::CutShort`], [`Rule::Io`].
    pub fn metadata(&self, source: &(impl Source + ?Sized)) -> Result<Cow<'_, str>> {
        self.metadata.read(source).map_err(|error| cut_short(source, self.size, error))
    }

    /// Return the tensor whose bytes are the values of this one: itself, or the embedding if it is tied.
    ///
    /// # Errors
    /// [`Rule::TiedToNothing`].
    pub fn stored(&self, tensor: Tensor) -> Result<Tensor> {
        if !tensor.is_tied() {
            return Ok(tensor);
        }
        let embedding = self.tensor(index::EMBEDDING).filter(|embedding| embedding.dims == tensor.dims);
        embedding.ok_or_else(|| {
            Rule::TiedToNothing { dims: tensor.dims, embedding: index::EMBEDDING }
                .at(Part::Data, tensor.offset)
                .of_tensor(tensor.name)
        })
    }
}

/// Replace an error of reading bytes that were there when the file was opened, by the fact that it was truncated since.
#[must_use]
pub fn cut_short(source: &(impl Source + ?Sized), need: u64, error: Error) -> Error {
    match (&error.rule, source.size()) {
        (Rule::Io(io), Ok(have)) if io.kind() == io::ErrorKind::UnexpectedEof && have < need => {
            Error::cut_short(need, have)
        }
        _ => error,
    }
}
