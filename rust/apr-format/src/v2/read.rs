//! Opening a v2 file: every check of what leads to the tensors, before a byte is handed out.
//!
//! The footer is checked by verification. The metadata are read and checked when they are asked for: nothing
//! depends on them, and a tokenizer in them would be most of the time that opening takes.

use std::{borrow::Cow, io};

use crate::{
    error::{Error, Part, Result},
    sniff,
    source::{Source, read_vec},
    v2::{
        FOOTER_SIZE, align,
        header::{Header, flags},
        index::{self, Index, Place, Tensor},
        metadata,
    },
};

/// What a file holds, but the tensors' bytes.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The 64 bytes at the start.
    pub header: Header,
    /// The metadata's JSON text, of forms in which opening needs it.
    pub(crate) json: Option<String>,
    /// The tensors, sorted by name.
    pub tensors: Index,
    /// Where the footer is and the CRC32 it holds; None for an old file without one.
    pub footer: Option<(u64, u32)>,
    /// Length of the file.
    pub size: u64,
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
    /// [`Error::Metadata`], [`Error::CutShort`]; the operating system's.
    pub fn metadata(&self, source: &(impl Source + ?Sized)) -> Result<Cow<'_, str>> {
        match &self.json {
            Some(json) => Ok(Cow::Borrowed(json)),
            None => read_metadata(source, &self.header)
                .map(Cow::Owned)
                .map_err(|error| cut_short(source, self.size, error)),
        }
    }

    /// The tensor whose bytes are this one's values: itself, or the embedding for an empty head.
    ///
    /// # Errors
    /// [`Error::TiedToNothing`].
    pub fn stored(&self, tensor: Tensor) -> Result<Tensor> {
        if !tensor.is_tied() {
            return Ok(tensor);
        }
        let embedding = self.tensor(index::EMBEDDING).filter(|embedding| embedding.dims == tensor.dims);
        embedding.ok_or(Error::TiedToNothing {
            tensor: tensor.name,
            dims: tensor.dims,
            embedding: index::EMBEDDING,
            offset: tensor.offset,
        })
    }
}

/// An error of reading what was checked at opening: that the file was cut short since is one of its own.
#[must_use]
pub fn cut_short(source: &(impl Source + ?Sized), need: u64, error: Error) -> Error {
    match (&error, source.size()) {
        (Error::Io(io), Ok(have)) if io.kind() == io::ErrorKind::UnexpectedEof && have < need => {
            Error::CutShort { need, have }
        }
        _ => error,
    }
}

/// Read and check header and index, and that the metadata lie inside the file.
///
/// # Errors
/// The first rule of the format that does not hold.
pub fn open(source: &(impl Source + ?Sized)) -> Result<Contents> {
    let size = source.size()?;
    let header = read_header(source, size)?;
    header.check()?;
    check_compression(source, &header, size)?;
    header.check_size(size)?;
    let tensors = read_index(source, &header, size)?;
    index::check_overlaps(&tensors)?;
    let footer = read_footer(source, header.data_offset, &tensors, size)?;
    Ok(Contents { header, json: None, tensors, footer, size })
}

/// The metadata's JSON text, also of a file that does not open for what comes after them.
///
/// # Errors
/// What is wrong with the header; [`Error::Metadata`]; the operating system's.
pub fn metadata(source: &(impl Source + ?Sized)) -> Result<String> {
    read_metadata(source, &read_header(source, source.size()?)?)
}

fn read_metadata(source: &(impl Source + ?Sized), header: &Header) -> Result<String> {
    let json = read_vec(source, header.metadata_offset, u64::from(header.metadata_size))?;
    metadata::check(json, header.metadata_offset)
}

fn read_header(source: &(impl Source + ?Sized), size: u64) -> Result<Header> {
    let prefix = read_vec(source, 0, size.min(sniff::PREFIX as u64))?;
    sniff::v2_header(&prefix, size)
}

/// A compression flag over plain metadata is only a flag; otherwise the whole body is compressed.
fn check_compression(source: &(impl Source + ?Sized), header: &Header, size: u64) -> Result<()> {
    let flag = match header.flags {
        bits if bits & flags::LZ4_COMPRESSED != 0 => "LZ4_COMPRESSED",
        bits if bits & flags::ZSTD_COMPRESSED != 0 => "ZSTD_COMPRESSED",
        _ => return Ok(()),
    };
    let mut first = [b'{'];
    if header.metadata_offset < size {
        source.read_at(header.metadata_offset, &mut first)?;
    }
    if first != [b'{'] {
        let why = "its whole body is compressed, which is not read by this version";
        return Err(Error::UnsupportedFlag { flag, why });
    }
    Ok(())
}

fn read_index(source: &(impl Source + ?Sized), header: &Header, file_size: u64) -> Result<Index> {
    let (index_offset, data_offset, count) =
        (header.tensor_index_offset, header.data_offset, u64::from(header.tensor_count));
    // In order: the header's check has seen to it.
    let region = data_offset.saturating_sub(index_offset);
    if region < count * index::MIN_ENTRY {
        let what = format!("tensor_count {count} cannot fit into the {region} bytes of the tensor index");
        return Err(Error::HeaderField { offset: 8, what });
    }
    let bytes = read_vec(source, index_offset, region.min(count * index::MAX_ENTRY))?;
    Index::parse(bytes, header.tensor_count, Place { index_offset, data_offset, file_size })
}

/// After the last tensor's padding comes nothing, or the four bytes of the footer.
fn read_footer(
    source: &(impl Source + ?Sized),
    data_offset: u64,
    tensors: &Index,
    size: u64,
) -> Result<Option<(u64, u32)>> {
    let end = tensors
        .iter()
        .filter_map(|tensor| tensor.offset.checked_add(align(tensor.nbytes)?))
        .fold(data_offset, u64::max);
    match size.saturating_sub(end) {
        0 => Ok(None),
        FOOTER_SIZE => {
            let mut bytes = [0; 4];
            source.read_at(end, &mut bytes)?;
            Ok(Some((end, u32::from_le_bytes(bytes))))
        }
        rest if rest < FOOTER_SIZE => Err(Error::Truncated {
            part: Part::Footer,
            what: "the footer".into(),
            tensor: None,
            need: end + FOOTER_SIZE,
            have: size,
        }),
        rest => Err(Error::TrailingBytes { offset: end + FOOTER_SIZE, extra: rest - FOOTER_SIZE }),
    }
}
