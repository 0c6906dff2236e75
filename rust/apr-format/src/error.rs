//! The one error type: each variant is one rule of the format, with what it is about.

use std::io;

use crate::sniff::Foreign;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Which family of error a caller is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The structure of the file lies.
    Format,
    /// Stored and computed checksums differ.
    Checksum,
    /// The file ends before its declared contents do.
    Truncated,
    /// An honest file of a kind that is not read.
    Unsupported,
    /// The file is encrypted and the key is missing or wrong, or it is not and there is one.
    Decryption,
    /// The signature is missing, wrong, or by a key that is not trusted.
    Signature,
    /// The caller asked for something that cannot be written.
    Invalid,
    /// The operating system said no.
    Io,
}

/// Which part of a file an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The first bytes: what the file is.
    Magic,
    /// What is compressed as a whole.
    Packing,
    /// The fixed bytes at the start.
    Header,
    /// The JSON metadata.
    Metadata,
    /// The tensor index.
    Index,
    /// The tensor data.
    Data,
    /// The CRC32 at the end.
    Footer,
    /// The signature of v1.
    Signature,
    /// The encryption of v1's payload.
    Encryption,
    /// The payload of v1.
    Payload,
}

impl Part {
    /// The name under which a report lists it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Magic => "magic",
            Self::Packing => "packing",
            Self::Header => "header",
            Self::Metadata => "metadata",
            Self::Index => "tensor index",
            Self::Data => "tensor data",
            Self::Footer => "footer",
            Self::Signature => "signature",
            Self::Encryption => "encryption",
            Self::Payload => "payload",
        }
    }
}

/// A rule of the format that does not hold. Offsets count from the start of the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system's own error.
    #[error(transparent)]
    Io(#[from] io::Error),

    /// A file of another format.
    #[error("not an .apr file but {0}")]
    Foreign(Foreign),
    /// A file of an unknown format.
    #[error("not an .apr file: it starts with the bytes {first:02x?}, which no known model format does")]
    UnknownMagic {
        /// The first bytes, at most eight.
        first: Vec<u8>,
    },
    /// A kind of `.apr` file that is not read.
    #[error("{what} is not read by this version")]
    UnsupportedVariant {
        /// Which kind.
        what: String,
    },
    /// An older form of `.apr` file where a current one is needed: it is read, but never written.
    #[error("{what} is read-only; write its tensors to a current .apr file first")]
    ReadOnlyForm {
        /// Which kind.
        what: &'static str,
    },
    /// The file ends within a part of it.
    #[error(
        "the file ends at byte {have}, but {what} needs it to reach byte {need}: copy or download it again"
    )]
    Truncated {
        /// The part.
        part: Part,
        /// The part, in words.
        what: String,
        /// The tensor, where it is one.
        tensor: Option<String>,
        /// Where the part ends.
        need: u64,
        /// Where the file ends.
        have: u64,
    },

    /// The file is shorter than it was when it was opened.
    #[error("the file ends at byte {have}, but had {need} bytes when it was opened: it was cut short since")]
    CutShort {
        /// Its length when it was opened.
        need: u64,
        /// Its length now.
        have: u64,
    },

    /// The file is longer than it was when it was listed.
    #[error("the file has {have} bytes, but had {had} when it was listed: something writes to it")]
    Grown {
        /// Its length when it was listed.
        had: u64,
        /// Its length now.
        have: u64,
    },

    /// The header's own CRC32 is wrong.
    #[error(
        "header checksum at byte 40 is {stored:#010x}, the header's bytes give {computed:#010x}: the header is damaged"
    )]
    HeaderChecksum {
        /// As stored.
        stored: u32,
        /// As computed.
        computed: u32,
    },
    /// A major version other than 2, and under v1's magic other than 1.
    #[error("container version {major}.{minor} (byte 4) is not read: only 2.x is, and 1.x of magic APRN")]
    Version {
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
    },
    /// A flag that forbids reading.
    #[error("flag {flag} (byte 6) is set: {why}")]
    ForbiddenFlag {
        /// Name of the flag.
        flag: &'static str,
        /// Why the file is refused.
        why: &'static str,
    },
    /// A flag for which no layout is known.
    #[error("flag {flag} (byte 6) is set: {why}")]
    UnsupportedFlag {
        /// Name of the flag.
        flag: &'static str,
        /// Why the file is not read.
        why: &'static str,
    },
    /// Two fields of the header contradict each other.
    #[error("header byte {offset}: {what}")]
    HeaderField {
        /// Where the field is.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },

    /// The metadata is no JSON object within the limits.
    #[error("metadata at byte {offset}: {what}")]
    Metadata {
        /// Where in the file.
        offset: u64,
        /// What is wrong.
        what: String,
    },

    /// An entry of an older form's tensor index, or all of it, is not what it should be.
    #[error("tensor index at byte {offset}: {what}")]
    JsonIndex {
        /// The tensor, where it is about one.
        tensor: Option<String>,
        /// Where in the file.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// Compressed bytes that do not decompress to what was declared.
    #[error("{codec} data at byte {offset}: {what}")]
    Packed {
        /// How it is compressed.
        codec: &'static str,
        /// Where the compressed bytes start.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The payload cannot be decrypted.
    #[error("{what}")]
    Decryption {
        /// Where the payload starts.
        offset: Option<u64>,
        /// Why.
        what: &'static str,
    },
    /// The signature is not what was asked for.
    #[error("{what}")]
    Signature {
        /// Where it, or its public key, stands.
        offset: Option<u64>,
        /// What is wrong.
        what: String,
    },
    /// The count in a payload is not that of the tensors that the metadata describe.
    #[error("payload: it starts with the count {count}, but the metadata describe {expected} values")]
    Count {
        /// Where the count stands.
        offset: u64,
        /// As stored.
        count: u64,
        /// Of the tensors.
        expected: u64,
    },
    /// An error within what a compressed file unpacks to; its offsets count there.
    #[error("{0} (bytes counted in the unpacked contents)")]
    Unpacked(Box<Error>),
    /// An entry of the tensor index runs out of the index.
    #[error(
        "tensor index entry {entry} at byte {offset} does not fit before byte {limit}, where the index ends"
    )]
    EntryTooLong {
        /// Number of the entry.
        entry: u32,
        /// Where it starts.
        offset: u64,
        /// Where the index ends.
        limit: u64,
    },
    /// A tensor name that the format does not allow.
    #[error("tensor index entry {entry} at byte {offset}: the name {what}")]
    Name {
        /// Number of the entry.
        entry: u32,
        /// Where the entry starts.
        offset: u64,
        /// What is wrong with the name.
        what: &'static str,
    },
    /// The index is not sorted by name, or holds a name twice.
    #[error(
        "tensor {tensor:?} (index byte {offset}) {what} {previous:?}: the index must be strictly sorted by name"
    )]
    Unsorted {
        /// The later entry.
        tensor: String,
        /// The entry before it.
        previous: String,
        /// "comes after" or "repeats".
        what: &'static str,
        /// Where the later entry starts.
        offset: u64,
    },
    /// A dtype id that the format does not have.
    #[error("tensor {tensor:?}: unknown dtype id {id} (byte {offset})")]
    UnknownDtype {
        /// The tensor.
        tensor: String,
        /// The id.
        id: u8,
        /// Where the id stands.
        offset: u64,
    },
    /// More dimensions than the format allows.
    #[error("tensor {tensor:?}: {ndim} dimensions (byte {offset}), at most 8 are allowed")]
    TooManyDims {
        /// The tensor.
        tensor: String,
        /// The number of dimensions.
        ndim: u8,
        /// Where the number stands.
        offset: u64,
    },
    /// The product of the dimensions is out of range.
    #[error("tensor {tensor:?}: the product of its dims {dims:?} (byte {offset}) is out of range")]
    DimsOverflow {
        /// The tensor.
        tensor: String,
        /// The dims.
        dims: Vec<u64>,
        /// Where they stand.
        offset: u64,
    },
    /// The stored size is not what dtype and dims imply.
    #[error("tensor {tensor:?}: size {size} (byte {offset}), but {dtype} {dims:?} takes {expected} bytes")]
    SizeMismatch {
        /// The tensor.
        tensor: String,
        /// Name of its dtype.
        dtype: &'static str,
        /// Its dims.
        dims: Vec<u64>,
        /// As stored.
        size: u64,
        /// As implied.
        expected: u64,
        /// Where the size stands.
        offset: u64,
    },
    /// A data offset that is no multiple of 64.
    #[error("tensor {tensor:?}: data offset {value} (byte {offset}) is no multiple of 64")]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// The data offset.
        value: u64,
        /// Where it stands.
        offset: u64,
    },
    /// Offset plus size is out of range.
    #[error("tensor {tensor:?}: data offset {value} (byte {offset}) plus size {size} is out of range")]
    OffsetOverflow {
        /// The tensor.
        tensor: String,
        /// The data offset.
        value: u64,
        /// The size.
        size: u64,
        /// Where the data offset stands.
        offset: u64,
    },
    /// Two tensors share bytes.
    #[error("tensor {tensor:?} at byte {offset} overlaps tensor {other:?}, which ends at byte {end}")]
    Overlap {
        /// The later tensor.
        tensor: String,
        /// The earlier one.
        other: String,
        /// Where the later one starts.
        offset: u64,
        /// Where the earlier one ends.
        end: u64,
    },
    /// An empty head without an embedding of its shape to stand for.
    #[error(
        "tensor {tensor:?} (byte {offset}) is empty under the shape {dims:?}, which ties it to {embedding:?}, but there is no tensor of that name and shape"
    )]
    TiedToNothing {
        /// The empty tensor.
        tensor: String,
        /// Its dims.
        dims: Vec<u64>,
        /// The tensor it should stand for.
        embedding: &'static str,
        /// Where the empty tensor stands.
        offset: u64,
    },
    /// More bytes than the contents and the footer.
    #[error(
        "{extra} bytes after the footer, which ends at byte {offset}: the file is longer than its contents"
    )]
    TrailingBytes {
        /// Where the footer ends.
        offset: u64,
        /// How many bytes follow.
        extra: u64,
    },
    /// The footer's CRC32 is wrong.
    #[error(
        "footer checksum at byte {offset} is {stored:#010x}, the bytes before it give {computed:#010x}: the file is damaged"
    )]
    FooterChecksum {
        /// Where the footer is.
        offset: u64,
        /// As stored.
        stored: u32,
        /// As computed.
        computed: u32,
    },

    /// A request to write what the format cannot hold.
    #[error("{what}")]
    Unwritable {
        /// The tensor, where it is about one.
        tensor: Option<String>,
        /// What is wrong.
        what: String,
    },
}

impl Error {
    /// The family of the error.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Unpacked(inner) => inner.kind(),
            Self::Decryption { .. } => Kind::Decryption,
            Self::Signature { .. } => Kind::Signature,
            Self::Io(_) => Kind::Io,
            Self::Truncated { .. } | Self::CutShort { .. } => Kind::Truncated,
            Self::HeaderChecksum { .. } | Self::FooterChecksum { .. } => Kind::Checksum,
            Self::Foreign(_)
            | Self::UnsupportedVariant { .. }
            | Self::ReadOnlyForm { .. }
            | Self::Version { .. }
            | Self::UnsupportedFlag { .. } => Kind::Unsupported,
            Self::Unwritable { .. } => Kind::Invalid,
            _ => Kind::Format,
        }
    }

    /// The tensor it is about.
    #[must_use]
    pub fn tensor(&self) -> Option<&str> {
        match self {
            Self::Unsorted { tensor, .. }
            | Self::UnknownDtype { tensor, .. }
            | Self::TooManyDims { tensor, .. }
            | Self::DimsOverflow { tensor, .. }
            | Self::SizeMismatch { tensor, .. }
            | Self::Misaligned { tensor, .. }
            | Self::OffsetOverflow { tensor, .. }
            | Self::Overlap { tensor, .. }
            | Self::TiedToNothing { tensor, .. } => Some(tensor),
            Self::Truncated { tensor, .. }
            | Self::Unwritable { tensor, .. }
            | Self::JsonIndex { tensor, .. } => tensor.as_deref(),
            Self::Unpacked(inner) => inner.tensor(),
            _ => None,
        }
    }

    /// The byte it is about, from the start of the file.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        match self {
            Self::Io(_) | Self::Unwritable { .. } => None,
            Self::Unpacked(inner) => inner.offset(),
            Self::Decryption { offset, .. } | Self::Signature { offset, .. } => *offset,
            Self::Foreign(_)
            | Self::UnknownMagic { .. }
            | Self::UnsupportedVariant { .. }
            | Self::ReadOnlyForm { .. } => Some(0),
            Self::Truncated { have, .. } | Self::CutShort { have, .. } => Some(*have),
            Self::Grown { had, .. } => Some(*had),
            Self::HeaderChecksum { .. } => Some(40),
            Self::Version { .. } => Some(4),
            Self::ForbiddenFlag { .. } | Self::UnsupportedFlag { .. } => Some(6),
            Self::HeaderField { offset, .. }
            | Self::Metadata { offset, .. }
            | Self::JsonIndex { offset, .. }
            | Self::Packed { offset, .. }
            | Self::Count { offset, .. }
            | Self::EntryTooLong { offset, .. }
            | Self::Name { offset, .. }
            | Self::Unsorted { offset, .. }
            | Self::UnknownDtype { offset, .. }
            | Self::TooManyDims { offset, .. }
            | Self::DimsOverflow { offset, .. }
            | Self::SizeMismatch { offset, .. }
            | Self::Misaligned { offset, .. }
            | Self::OffsetOverflow { offset, .. }
            | Self::Overlap { offset, .. }
            | Self::TiedToNothing { offset, .. }
            | Self::TrailingBytes { offset, .. }
            | Self::FooterChecksum { offset, .. } => Some(*offset),
        }
    }

    /// The part of the file it is about; None where it is about the request, not a file.
    #[must_use]
    pub fn part(&self) -> Option<Part> {
        Some(match self {
            Self::Io(_) | Self::Unwritable { .. } => return None,
            Self::Unpacked(inner) => return inner.part(),
            Self::Foreign(_)
            | Self::UnknownMagic { .. }
            | Self::UnsupportedVariant { .. }
            | Self::ReadOnlyForm { .. } => Part::Magic,
            Self::Truncated { part, .. } => *part,
            Self::HeaderChecksum { .. }
            | Self::Version { .. }
            | Self::ForbiddenFlag { .. }
            | Self::UnsupportedFlag { .. }
            | Self::HeaderField { .. } => Part::Header,
            Self::Metadata { .. } => Part::Metadata,
            Self::JsonIndex { .. }
            | Self::EntryTooLong { .. }
            | Self::Name { .. }
            | Self::Unsorted { .. }
            | Self::UnknownDtype { .. }
            | Self::TooManyDims { .. }
            | Self::DimsOverflow { .. }
            | Self::SizeMismatch { .. }
            | Self::Misaligned { .. }
            | Self::OffsetOverflow { .. } => Part::Index,
            Self::Packed { .. } => Part::Packing,
            Self::Decryption { .. } => Part::Encryption,
            Self::Signature { .. } => Part::Signature,
            Self::Count { .. } => Part::Payload,
            Self::CutShort { .. }
            | Self::Grown { .. }
            | Self::Overlap { .. }
            | Self::TiedToNothing { .. } => Part::Data,
            Self::TrailingBytes { .. } | Self::FooterChecksum { .. } => Part::Footer,
        })
    }
}
