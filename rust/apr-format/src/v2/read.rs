//! Open a version 2 file: check everything that leads to the tensors.
//!
//! The footer is left to verification, because it needs every byte of the file. The metadata are read and checked when
//! they are first used: no tensor depends on them, and a tokenizer of 12 MB in them would be most of the time that
//! opening takes.

use std::borrow::Cow;

use crate::{
    contents::{Contents, FOOTER_SIZE, Metadata},
    error::{Error, Part, Result, Rule},
    index::{self, Index},
    sniff,
    source::{Source, read_vec},
    v2::{
        align,
        header::{self, Header, flags},
        index::{MAX_ENTRY, MIN_ENTRY, Place, parse},
    },
};

/// Read and check the header and the index, and check that the metadata are inside the file.
///
/// # Errors
/// The first rule that the file breaks.
pub fn open(source: &(impl Source + ?Sized)) -> Result<(Header, Contents)> {
    let size = source.size()?;
    let header = read_header(source, size)?;
    header.check()?;
    check_compression(source, &header, size)?;
    header.check_size(size)?;
    let tensors = read_index(source, &header, size)?;
    index::check_overlaps(&tensors)?;
    let footer = read_footer(source, header.data_offset, &tensors, size)?;
    let metadata = stored_metadata(&header);
    Ok((header, Contents { metadata, tensors, footer, size }))
}

/// Read and check the metadata, even if a later part keeps the file from opening.
///
/// # Errors
/// Those of the header; [`Rule::Malformed`]; [`Rule::Io`].
pub fn metadata(source: &(impl Source + ?Sized)) -> Result<String> {
    stored_metadata(&read_header(source, source.size()?)?).read(source).map(Cow::into_owned)
}

fn stored_metadata(header: &Header) -> Metadata {
    Metadata::Stored { offset: header.metadata_offset, size: header.metadata_size }
}

fn read_header(source: &(impl Source + ?Sized), size: u64) -> Result<Header> {
    let prefix = read_vec(source, 0, size.min(sniff::PREFIX_SIZE as u64))?;
    sniff::v2_header(&prefix, size)
}

/// Refuse a compressed body. Some writers set the flag without compressing anything: then the metadata start with a
/// brace.
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
        let what = format!("flag {flag} with a compressed body");
        return Err(Rule::Unsupported { what }.at(Part::Header, header::FLAGS));
    }
    Ok(())
}

fn read_index(source: &(impl Source + ?Sized), header: &Header, file_size: u64) -> Result<Index> {
    let (index_offset, data_offset, count) =
        (header.tensor_index_offset, header.data_offset, u64::from(header.tensor_count));
    // Cannot be negative: the header was checked.
    let region = data_offset.saturating_sub(index_offset);
    if region < count * MIN_ENTRY {
        let what = format!("tensor_count {count} cannot fit into the {region} bytes of the tensor index");
        return Err(Rule::Malformed { what }.at(Part::Header, 8));
    }
    let bytes = read_vec(source, index_offset, region.min(count * MAX_ENTRY))?;
    parse(bytes, header.tensor_count, Place { index_offset, data_offset, file_size })
}

/// Read the footer after the padding of the last tensor. Some old writers left it out.
fn read_footer(
    source: &(impl Source + ?Sized),
    data_offset: u64,
    tensors: &Index,
    size: u64,
) -> Result<Option<(u64, u32)>> {
    let end = tensors
        .entries()
        .filter_map(|entry| entry.offset.checked_add(align(entry.nbytes)?))
        .fold(data_offset, u64::max);
    match size.saturating_sub(end) {
        0 => Ok(None),
        FOOTER_SIZE => {
            let mut bytes = [0; 4];
            source.read_at(end, &mut bytes)?;
            Ok(Some((end, u32::from_le_bytes(bytes))))
        }
        rest if rest < FOOTER_SIZE => Err(Error::truncated(Part::Footer, end + FOOTER_SIZE, size)),
        rest => Err(Rule::TrailingBytes { extra: rest - FOOTER_SIZE }.at(Part::Footer, end + FOOTER_SIZE)),
    }
}
