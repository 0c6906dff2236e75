//! What a file is, by its first bytes.

use crate::{
    error::{Error, Part, Result},
    v2::header,
    variants::wrapper::Wrapper,
};

/// How many bytes are looked at.
pub const PREFIX: usize = 64;

/// Largest header of a safetensors file.
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
        Some(b"APR1") if is_whisper(prefix) => Err(variant(
            "whisper's container (magic APR1), which apr inspect and apr tensors show without its values,",
        )),
        Some(b"APR1") if size <= 8 => Err(Error::Truncated {
            part: Part::Header,
            what: "the header".into(),
            tensor: None,
            need: 9,
            have: size,
        }),
        Some(b"APR1") => Err(variant("a container of unknown layout (magic APR1)")),
        _ => Err(foreign(prefix, size)),
    }
}

/// The header of a v2 file, or what the file is instead.
///
/// # Errors
/// As [`kind`]; [`Error::ReadOnlyForm`] for the older forms.
pub fn v2_header(prefix: &[u8], size: u64) -> Result<header::Header> {
    match kind(prefix, size)? {
        Kind::V2(header) => Ok(header),
        Kind::V1 => Err(Error::ReadOnlyForm { what: "APR v1" }),
        Kind::Json | Kind::Wrapped(_) => Err(Error::ReadOnlyForm { what: "the JSON container APR1" }),
    }
}

/// Whether the first bytes are those of whisper's container.
pub(crate) fn is_whisper(prefix: &[u8]) -> bool {
    prefix.starts_with(b"APR1\x01\0") && prefix.get(8) != Some(&b'{')
}

fn whole_header(prefix: &[u8], size: u64) -> Result<&[u8; PREFIX]> {
    prefix.first_chunk().ok_or_else(|| Error::Truncated {
        part: Part::Header,
        what: "the header".into(),
        tensor: None,
        need: PREFIX as u64,
        have: size,
    })
}

fn damaged(bytes: &[u8; PREFIX]) -> Error {
    Error::HeaderChecksum { stored: header::Header::parse(bytes).checksum, computed: header::checksum(bytes) }
}

fn variant(what: &str) -> Error {
    Error::UnsupportedVariant { what: what.into() }
}

const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// First bytes, what starts with them, what to do.
const KNOWN: &[(&[u8], &str, &str)] = &[
    (b"GGUF", "a GGUF file", "apr convert FILE OUT.apr turns it into one"),
    (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint or .npz)", FROM_TORCH),
    (b"PK\x05\x06", "an empty zip archive", "there is nothing in it to read"),
    (b"\x80\x02", "a Python pickle (an old PyTorch checkpoint)", FROM_TORCH),
    (b"\x80\x03", "a Python pickle", FROM_TORCH),
    (b"\x80\x04", "a Python pickle", FROM_TORCH),
    (b"\x80\x05", "a Python pickle", FROM_TORCH),
    (b"\x93NUMPY", "a NumPy array", "apr.save({'name': numpy.load(FILE)}, 'OUT.apr') turns it into one"),
    (b"\x89HDF", "an HDF5 file", "read it with h5py and write the tensors with apr.save"),
    (b"\x1f\x8b", "a gzip file", "gunzip it first"),
    (ZSTD, "a zstd file", "decompress it first"),
    (b"version https://git-lfs", "a Git LFS pointer", "git lfs pull fetches the file itself"),
    (b"<!DOCTYPE", "an HTML page", "the download went wrong: fetch the file again"),
    (b"<html", "an HTML page", "the download went wrong: fetch the file again"),
];
const FROM_TORCH: &str =
    "apr.save(torch.load(FILE, weights_only=True), 'OUT.apr') converts a state dict that you trust";
const BUNDLE: &[u8] = b"APBUNDLE";

fn foreign(prefix: &[u8], size: u64) -> Error {
    if prefix.starts_with(BUNDLE) {
        return variant("a bundle of several models (magic APBUNDLE)");
    }
    if let Some(&(_, what, remedy)) = KNOWN.iter().find(|(magic, ..)| prefix.starts_with(magic)) {
        return Error::Foreign { what, remedy };
    }
    if let Some((length, [b'{', ..])) =
        prefix.split_first_chunk().map(|(n, rest)| (u64::from_le_bytes(*n), rest))
        && length < SAFETENSORS_MAX
    {
        return Error::Foreign {
            what: "a safetensors file",
            remedy: "apr convert FILE OUT.apr turns it into one",
        };
    }
    if size < 4 && header::MAGIC.starts_with(prefix) {
        return Error::Truncated {
            part: Part::Magic,
            what: "the magic".into(),
            tensor: None,
            need: 4,
            have: size,
        };
    }
    if !prefix.is_empty() && prefix.iter().all(|&byte| byte == 0) {
        return Error::Foreign {
            what: "zero bytes",
            remedy: "a copy or download was cut off: fetch it again",
        };
    }
    Error::UnknownMagic { first: prefix.iter().take(8).copied().collect() }
}
