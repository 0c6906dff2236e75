//! What a file is, by its first bytes.

use std::fmt;

use crate::{
    error::{Error, Part, Result, Rule},
    v2::header,
    variants::wrapper::Wrapper,
};

/// How many bytes are looked at.
pub const PREFIX: usize = 64;

/// Largest header that safetensors itself accepts. Any eight bytes and a brace would else pass for one.
const SAFETENSORS_MAX: u64 = 100_000_000;

/// What an `.apr` file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// v2 under any of its magics; the header, whose checksum holds.
    V2(header::Header),
    /// The JSON container `APR1`.
    Json,
    /// `APR1` in a wrapper.
    Wrapped(Wrapper),
    /// v1.
    V1,
}

/// What a file is, if it is an `.apr` file that is read.
///
/// `prefix` holds the first 64 bytes, or all of a shorter file; `size` is the file's length.
///
/// # Errors
/// What the file looks like and what to do with it; a damaged or cut-off header.
pub fn kind(prefix: &[u8], size: u64) -> Result<Kind> {
    let magic: Option<[u8; 4]> = prefix.first_chunk().copied();
    match magic.as_ref() {
        Some(b"APR\0" | b"APR2") => match (whole_header(prefix, size), Wrapper::parse(prefix)) {
            (Ok(bytes), _) if header::checksum_holds(bytes) => Ok(Kind::V2(header::Header::parse(bytes))),
            (_, Some(wrapper)) => Ok(Kind::Wrapped(wrapper)),
            (bytes, None) => Err(damaged(bytes?)),
        },
        Some(b"APRN") if prefix.get(4..6) == Some(&[2, 0]) => {
            let bytes = whole_header(prefix, size)?;
            if header::checksum_holds(bytes) {
                return Ok(Kind::V2(header::Header::parse(bytes)));
            }
            Err(damaged(bytes))
        }
        Some(b"APRN") => Ok(Kind::V1),
        Some(b"APR1") if prefix.get(8) == Some(&b'{') => Ok(Kind::Json),
        // whisper.apr's binary header starts with its version, 1; no file of its writer was available to
        // compare values with.
        Some(b"APR1") if prefix.starts_with(b"APR1\x01\0") => {
            Err(variant("the container of whisper.apr (magic APR1)"))
        }
        Some(b"APR1") if size <= 8 => Err(Error::truncated(Part::Header, 9, size)),
        Some(b"APR1") => Err(variant("a container of unknown layout (magic APR1)")),
        _ => Err(unreadable(prefix, size)),
    }
}

/// The header of a v2 file, or what the file is instead.
///
/// # Errors
/// As [`kind`]; [`Rule::ReadOnly`] for the older forms.
pub fn v2_header(prefix: &[u8], size: u64) -> Result<header::Header> {
    match kind(prefix, size)? {
        Kind::V2(header) => Ok(header),
        Kind::V1 => Err(Rule::ReadOnly { form: "APR v1" }.at(Part::Magic, 0)),
        Kind::Json | Kind::Wrapped(_) => {
            Err(Rule::ReadOnly { form: "the JSON container APR1" }.at(Part::Magic, 0))
        }
    }
}

fn whole_header(prefix: &[u8], size: u64) -> Result<&[u8; PREFIX]> {
    prefix.first_chunk().ok_or_else(|| Error::truncated(Part::Header, PREFIX as u64, size))
}

fn damaged(bytes: &[u8; PREFIX]) -> Error {
    let (stored, computed) = (header::Header::parse(bytes).checksum, header::checksum(bytes));
    Rule::Checksum { stored, computed }.at(Part::Header, 40)
}

fn variant(what: &str) -> Error {
    Rule::Unsupported { what: what.into() }.at(Part::Magic, 0)
}

/// A format other than `.apr`, recognized by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Foreign {
    /// GGUF, the format of llama.cpp.
    Gguf,
    /// safetensors.
    Safetensors,
    /// A zip archive: what `torch.save` writes since `PyTorch` 1.6, and `NumPy`'s `.npz`.
    Zip,
    /// A zip archive without an entry.
    EmptyZip,
    /// A Python pickle: what `torch.save` wrote before `PyTorch` 1.6.
    Pickle,
    /// `NumPy`'s `.npy`.
    Npy,
    /// HDF5, the format of older Keras models.
    Hdf5,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
    /// The few lines that Git LFS puts in the place of a file that was not fetched.
    GitLfsPointer,
    /// An HTML page, often an error page that was saved under the name of a model.
    Html,
    /// Nothing but zeros: what some tools leave of a download that stopped.
    Zeros,
}

impl fmt::Display for Foreign {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Gguf => "a GGUF file",
            Self::Safetensors => "a safetensors file",
            Self::Zip => "a zip archive (a PyTorch checkpoint or .npz)",
            Self::EmptyZip => "an empty zip archive",
            Self::Pickle => "a Python pickle (an old PyTorch checkpoint)",
            Self::Npy => "a NumPy array (.npy)",
            Self::Hdf5 => "an HDF5 file",
            Self::Gzip => "a gzip file: decompress it first",
            Self::Zstd => "a zstd file: decompress it first",
            Self::GitLfsPointer => "a Git LFS pointer: run git lfs pull to fetch the file itself",
            Self::Html => "an HTML page: the download failed, fetch the file again",
            Self::Zeros => "zero bytes: a copy or download was interrupted, fetch the file again",
        })
    }
}

impl Foreign {
    /// Recognize a format from a file's first bytes.
    fn detect(prefix: &[u8]) -> Option<Self> {
        if let Some((_, format)) = MAGICS.iter().find(|(magic, _)| prefix.starts_with(magic)) {
            return Some(*format);
        }
        // safetensors has no magic: the length of a JSON object as a u64, then the object.
        if let Some((length, [b'{', ..])) = prefix.split_first_chunk()
            && u64::from_le_bytes(*length) < SAFETENSORS_MAX
        {
            return Some(Self::Safetensors);
        }
        (!prefix.is_empty() && prefix.iter().all(|&byte| byte == 0)).then_some(Self::Zeros)
    }
}

/// First bytes of the formats that have a magic.
const MAGICS: &[(&[u8], Foreign)] = &[
    (b"GGUF", Foreign::Gguf),
    (b"PK\x03\x04", Foreign::Zip),
    (b"PK\x05\x06", Foreign::EmptyZip),
    // The opcode PROTO and the protocol, 2 to 5. Protocols 0 and 1 have no such start.
    (b"\x80\x02", Foreign::Pickle),
    (b"\x80\x03", Foreign::Pickle),
    (b"\x80\x04", Foreign::Pickle),
    (b"\x80\x05", Foreign::Pickle),
    (b"\x93NUMPY", Foreign::Npy),
    (b"\x89HDF", Foreign::Hdf5),
    (b"\x1f\x8b", Foreign::Gzip),
    (b"\x28\xb5\x2f\xfd", Foreign::Zstd),
    (b"version https://git-lfs", Foreign::GitLfsPointer),
    (b"<!DOCTYPE", Foreign::Html),
    (b"<html", Foreign::Html),
];

/// The error for a file that does not start as any readable `.apr` file does.
fn unreadable(prefix: &[u8], size: u64) -> Error {
    if prefix.starts_with(b"APBUNDLE") {
        return variant("a bundle of several models (magic APBUNDLE)");
    }
    if let Some(format) = Foreign::detect(prefix) {
        return Rule::Foreign { format }.at(Part::Magic, 0);
    }
    if size < 4 && header::MAGIC.starts_with(prefix) {
        return Error::truncated(Part::Magic, 4, size);
    }
    Rule::UnknownMagic { first: prefix.iter().take(8).copied().collect() }.at(Part::Magic, 0)
}
