//! What an opened file of any form says it holds.

use std::{borrow::Cow, io};

use crate::{
    error::{Error, Part, Result, Rule},
    index::{self, Index, Tensor},
    json,
    source::{Source, read_vec},
};

/// Bytes of the CRC32 at the end.
pub const FOOTER_SIZE: u64 = 4;

/// What a file holds, but the tensors' bytes.
#[derive(Debug, Clone)]
pub struct Contents {
    pub(crate) metadata: Metadata,
    /// The tensors, sorted by name.
    pub tensors: Index,
    /// Where the footer is and the CRC32 it holds; None for an old file without one.
    pub footer: Option<(u64, u32)>,
    /// Length of the file.
    pub size: u64,
}

/// The metadata of an open file.
#[derive(Debug, Clone)]
pub(crate) enum Metadata {
    /// JSON text that was checked: some forms cannot be opened without reading it.
    Checked(String),
    /// Where the JSON text is in the file, to be read and checked when it is asked for.
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
    /// What the index says of a tensor.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<Tensor> {
        self.tensors.get(name)
    }

    /// The metadata's JSON text, checked; of v2 it is read from the file that was opened.
    ///
    /// # Errors
    /// [`Rule::Malformed`], [`Rule::CutShort`]; the operating system's.
    pub fn metadata(&self, source: &(impl Source + ?Sized)) -> Result<Cow<'_, str>> {
        self.metadata.read(source).map_err(|error| cut_short(source, self.size, error))
    }

    /// The tensor whose bytes are this one's values: itself, or the embedding for an empty head.
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

/// An error of reading what was checked at opening: that the file was cut short since is one of its own.
#[must_use]
pub fn cut_short(source: &(impl Source + ?Sized), need: u64, error: Error) -> Error {
    match (&error.rule, source.size()) {
        (Rule::Io(io), Ok(have)) if io.kind() == io::ErrorKind::UnexpectedEof && have < need => {
            Error::cut_short(need, have)
        }
        _ => error,
    }
}
