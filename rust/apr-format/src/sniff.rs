//! Detect the format of a file by its first bytes.

use std::fmt;

use crate::{
    error::{Error, Part, Result, Rule},
    v2::header,
    variants::wrapper::Wrapper,
};

/// How many bytes decide: a version 2 header.
pub const PREFIX_SIZE: usize = 64;

/// The largest header that safetensors itself accepts. Without this limit, any eight bytes before a brace would pass
/// for the length of one.
const SAFETENSORS_MAX: u64 = 100_000_000;

/// A form of `.apr` file that this crate reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detected {
    /// Version 2, under its own or an older magic. The checksum of this header is correct.
    V2(header::Header),
    /// The JSON container, magic `APR1`.
    Json,
    /// A JSON container in a wrapper.
    Wrapped(Wrapper),
    /// Version 1, magic `APRN`.
    V1,
}

/// Detect the form of an `.apr` file.
///
/// `prefix` holds the first 64 bytes, or all bytes of a shorter file; `size` is the length of the file.
///
/// # Errors
/// [`Rule::Foreign`], [`Rule::Unsupported`] or [`Rule::UnknownMagic`] for any other file; [`Rule::Checksum`] or
/// [`Rule::Truncated`] for a damaged header.
pub fn detect(prefix: &[u8], size: u64) -> Result<Detected> {
    let magic: Option<[u8; 4]> = prefix.first_chunk().copied();
    match magic.as_ref() {
        // A wrapper uses the same magics. A correct header checksum decides for version 2, because the bytes that mark
        // a wrapper can occur in a header too.
        Some(b"APR\0" | b"APR2") => match (whole_header(prefix, size), Wrapper::parse(prefix)) {
            (Ok(bytes), _) if header::checksum_holds(bytes) => Ok(Detected::V2(header::Header::parse(bytes))),
            (_, Some(wrapper)) => Ok(Detected::Wrapped(wrapper)),
            (bytes, None) => Err(wrong_checksum(bytes?)),
        },
        // Early version 2 files kept the magic of version 1; the version field tells them apart.
        Some(b"APRN") if prefix.get(4..6) == Some(&[2, 0]) => {
            let bytes = whole_header(prefix, size)?;
            if header::checksum_holds(bytes) {
                return Ok(Detected::V2(header::Header::parse(bytes)));
            }
            Err(wrong_checksum(bytes))
        }
        Some(b"APRN") => Ok(Detected::V1),
        // The metadata, a JSON object, follow the magic and their length.
        Some(b"APR1") if prefix.get(8) == Some(&b'{') => Ok(Detected::Json),
        // The binary header of whisper.apr starts with its version, 1. No file of its writer was available to compare
        // values with, so it is not read.
        Some(b"APR1") if prefix.starts_with(b"APR1\x01\0") => {
            Err(unsupported("the container of whisper.apr (magic APR1)"))
        }
        Some(b"APR1") if size <= 8 => Err(Error::truncated(Part::Header, 9, size)),
        Some(b"APR1") => Err(unsupported("an unknown container with the magic APR1")),
        _ => Err(unreadable(prefix, size)),
    }
}

/// Return the header of a version 2 file.
///
/// # Errors
/// The errors of [`detect`]; [`Rule::ReadOnly`] for an older form.
pub fn v2_header(prefix: &[u8], size: u64) -> Result<header::Header> {
    match detect(prefix, size)? {
        Detected::V2(header) => Ok(header),
        Detected::V1 => Err(Rule::ReadOnly { form: "APR v1" }.at(Part::Magic, 0)),
        Detected::Json | Detected::Wrapped(_) => {
            Err(Rule::ReadOnly { form: "the JSON container APR1" }.at(Part::Magic, 0))
        }
    }
}

/// Return the error for a form that this build cannot read.
#[cfg(not(feature = "v1"))]
pub(crate) fn left_out(form: &Detected) -> Error {
    unsupported(match form {
        Detected::V1 => "version 1 (this program was built without the feature v1)",
        _ => "a compressed JSON container (this program was built without the feature v1)",
    })
}

fn whole_header(prefix: &[u8], size: u64) -> Result<&[u8; PREFIX_SIZE]> {
    prefix.first_chunk().ok_or_else(|| Error::truncated(Part::Header, PREFIX_SIZE as u64, size))
}

fn wrong_checksum(bytes: &[u8; PREFIX_SIZE]) -> Error {
    let (stored, computed) = (header::Header::parse(bytes).checksum, header::checksum(bytes));
    Rule::Checksum { stored, computed }.at(Part::Header, 40)
}

fn unsupported(what: &str) -> Error {
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
    /// A zip archive: what `torch.save` writes since `PyTorch` 1.6, and others.
    Zip,
    /// A zip archive of arrays, `NumPy`'s `.npz`.
    Npz,
    /// A zip archive without entries.
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
    /// The few lines of text that Git LFS stores in place of a file that was not fetched.
    GitLfsPointer,
    /// An HTML page, often an error page that was saved under the name of the model.
    Html,
    /// Only zeros, which some tools leave behind when a download stops.
    Zeros,
}

impl fmt::Display for Foreign {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Gguf => "a GGUF file",
            Self::Safetensors => "a safetensors file",
            Self::Zip => "a zip archive (a PyTorch checkpoint or .npz)",
            Self::Npz => "an archive of NumPy arrays (.npz)",
            Self::EmptyZip => "an empty zip archive",
            Self::Pickle => "a Python pickle (an old PyTorch checkpoint)",
            Self::Npy => "a NumPy array (.npy)",
            Self::Hdf5 => "an HDF5 file",
            Self::Gzip => "a gzip file; decompress it first",
            Self::Zstd => "a zstd file; decompress it first",
            Self::GitLfsPointer => "a Git LFS pointer; run git lfs pull to fetch the file itself",
            Self::Html => "an HTML page; the download failed, so download the file again",
            Self::Zeros => "only null bytes; a copy or download was interrupted, so fetch the file again",
        })
    }
}

impl Foreign {
    /// Recognize a format by the first bytes of a file.
    fn detect(prefix: &[u8]) -> Option<Self> {
        if let Some((_, format)) = MAGICS.iter().find(|(magic, _)| prefix.starts_with(magic)) {
            let is_npz =
                *format == Self::Zip && first_entry(prefix).is_some_and(|name| name.ends_with(b".npy"));
            return Some(if is_npz { Self::Npz } else { *format });
        }
        // safetensors has no magic: it starts with the length of a JSON object as a u64, then the object.
        if let Some((length, [b'{', ..])) = prefix.split_first_chunk()
            && u64::from_le_bytes(*length) < SAFETENSORS_MAX
        {
            return Some(Self::Safetensors);
        }
        (!prefix.is_empty() && prefix.iter().all(|&byte| byte == 0)).then_some(Self::Zeros)
    }
}

/// Return the name of the first entry of a zip archive, if all of it is in the first bytes.
fn first_entry(prefix: &[u8]) -> Option<&[u8]> {
    // The local file header: the length of the name is a u16 at byte 26, and the name starts at byte 30.
    let length = u16::from_le_bytes([*prefix.get(26)?, *prefix.get(27)?]);
    prefix.get(30..30 + usize::from(length))
}

/// First bytes of the formats that have a magic.
const MAGICS: &[(&[u8], Foreign)] = &[
    (b"GGUF", Foreign::Gguf),
    (b"PK\x03\x04", Foreign::Zip),
    (b"PK\x05\x06", Foreign::EmptyZip),
    // The opcode PROTO and the protocol, 2 to 5. Protocols 0 and 1 have no fixed start.
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

/// Return the error for a file that does not start with a magic of `.apr`.
fn unreadable(prefix: &[u8], size: u64) -> Error {
    if prefix.starts_with(b"APBUNDLE") {
        return unsupported("a bundle of several models (magic APBUNDLE)");
    }
    if let Some(format) = Foreign::detect(prefix) {
        return Rule::Foreign { format }.at(Part::Magic, 0);
    }
    if size < 4 && header::MAGIC.starts_with(prefix) {
        return Error::truncated(Part::Magic, 4, size);
    }
    Rule::UnknownMagic { first: prefix.iter().take(8).copied().collect() }.at(Part::Magic, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_without_a_magic_are_recognized() {
        assert_eq!(Foreign::detect(b"\x02\0\0\0\0\0\0\0{}"), Some(Foreign::Safetensors));
        assert_eq!(Foreign::detect(&[0; 64]), Some(Foreign::Zeros));
        let mut archive = b"PK\x03\x04".to_vec();
        assert_eq!(Foreign::detect(&archive), Some(Foreign::Zip));
        archive.extend([0; 22]);
        archive.extend(b"\x05\0\0\0x.npy");
        assert_eq!(Foreign::detect(&archive), Some(Foreign::Npz));
        archive.pop();
        assert_eq!(Foreign::detect(&archive), Some(Foreign::Zip));
        // A length of more than 100 MB before the brace.
        assert_eq!(Foreign::detect(b"abcdefgh{}"), None);
        assert_eq!(Foreign::detect(b""), None);
    }

    #[cfg(not(feature = "v1"))]
    #[test]
    fn forms_that_are_left_out_are_refused_by_name() {
        use crate::{container::Container, error::Kind};

        let wrapped = b"APR2\x02\x04\0\0\0\x28\xb5\x2f\xfd";
        for file in [&b"APRN\x01\0"[..], wrapped] {
            let error = Container::open(file).unwrap_err();
            assert_eq!((error.kind(), error.offset()), (Kind::Unsupported, Some(0)));
            assert!(error.to_string().contains("feature v1"), "{error}");
        }
    }
}
