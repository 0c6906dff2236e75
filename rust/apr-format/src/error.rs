//! The error of this crate: a place in a file, and the rule that does not hold there.

use std::{fmt, io};

use crate::{dtype::Dtype, sniff::Foreign};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A rule of the format that a file breaks, or a request that cannot be met.
///
/// Its text is one line: the place, the tensor if there is one, then what is wrong. It does not name the file,
/// which the caller knows.
#[derive(Debug)]
pub struct Error {
    /// Where in the file.
    pub at: At,
    /// What is wrong.
    pub rule: Rule,
}

/// A place in a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct At {
    /// Which part; `None` for an error that is not about a file's contents.
    pub part: Option<Part>,
    /// Which byte, counted from the start of the file; `None` if no byte is to blame.
    pub offset: Option<u64>,
    /// Which tensor.
    pub tensor: Option<String>,
    /// Whether `offset` counts in what a compressed file unpacks to, not in the file itself.
    pub is_unpacked: bool,
}

/// The family of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The structure of the file is wrong.
    Format,
    /// A stored checksum does not match the bytes.
    Checksum,
    /// The file ends before its contents do.
    Truncated,
    /// The file is intact, but of a kind that is not supported.
    Unsupported,
    /// A key is missing, wrong or not needed.
    Decryption,
    /// The signature is missing, wrong or not by the trusted key.
    Signature,
    /// The caller asked for something that the format does not allow.
    Invalid,
    /// The operating system reported an error.
    Io,
}

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// The first bytes, which identify the format.
    Magic,
    /// The compression around a whole file.
    Packing,
    /// The fixed-size fields at the start.
    Header,
    /// The JSON metadata.
    Metadata,
    /// The tensor index.
    Index,
    /// The tensor data.
    Data,
    /// The CRC32 at the end.
    Footer,
    /// The signature of version 1.
    Signature,
    /// The encryption of version 1's payload.
    Encryption,
    /// The payload of version 1.
    Payload,
}

impl Part {
    /// Return the name that reports and messages use.
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

/// Declares the rules. A rule stands here once: what it says, its fields, its family and its message.
macro_rules! rules {
    ($(
        $(#[doc = $doc:literal])+
        $kind:ident: $rule:ident { $($(#[doc = $field_doc:literal])+ $field:ident: $type:ty,)* } => $message:literal
    )*) => {
        /// What is wrong with a file or a request.
        #[derive(Debug, thiserror::Error)]
        #[non_exhaustive]
        pub enum Rule {
            /// The operating system's own error.
            #[error(transparent)]
            Io(#[from] io::Error),
            $(
                $(#[doc = $doc])+
                #[error($message)]
                $rule { $($(#[doc = $field_doc])+ $field: $type,)* },
            )*
        }

        impl Rule {
            /// Return the family that the rule belongs to.
            #[must_use]
            pub fn kind(&self) -> Kind {
                match self {
                    Self::Io(_) => Kind::Io,
                    $(Self::$rule { .. } => Kind::$kind,)*
                }
            }
        }
    };
}

rules! {
    /// The file is of another format, which is recognized.
    Unsupported: Foreign {
        /// The other format.
        format: Foreign,
    } => "not an .apr file, but {format}"

    /// The file is of no format that is recognized.
    Format: UnknownMagic {
        /// Its first bytes, at most eight.
        first: Vec<u8>,
    } => "not an .apr file: its first bytes {first:02x?} match no known model format"

    /// An `.apr` file of a kind that is not supported, or of one that this build leaves out.
    Unsupported: Unsupported {
        /// Which kind.
        what: String,
    } => "{what} is not supported"

    /// An older form of `.apr` file, which can be read, but was asked to be changed.
    Unsupported: ReadOnly {
        /// Which form.
        form: &'static str,
    } => "{form} is an older form of the format, which can be read but not written"

    /// A version of the container that does not exist yet.
    Unsupported: Version {
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
    } => "container version {major}.{minor} is not supported; only 2.x is, and 1.x with the magic APRN"

    /// The file ends where one of its parts does not.
    Truncated: Truncated {
        /// Where the part ends.
        need: u64,
    } => "the file ends here, but should have at least {need} bytes; copy or download it again"

    /// The file is shorter than when it was opened.
    Truncated: CutShort {
        /// Its length when it was opened.
        need: u64,
    } => "the file ends here, but had {need} bytes when it was opened; another program has truncated it"

    /// The file is longer than when it was listed.
    Format: Grown {
        /// Its length now.
        have: u64,
    } => "the file has grown to {have} bytes since it was listed; another program is writing to it"

    /// A checksum does not match the bytes that it covers.
    Checksum: Checksum {
        /// The stored CRC32.
        stored: u32,
        /// The CRC32 of the bytes.
        computed: u32,
    } => "the stored checksum is {stored:#010x}, but the computed one is {computed:#010x}; the file is damaged"

    /// A field contradicts the format or another field.
    Format: Malformed {
        /// What is wrong with it.
        what: String,
    } => "{what}"

    /// Compressed bytes do not decompress to what the file declares.
    Format: Compressed {
        /// The compression.
        codec: &'static str,
        /// What is wrong.
        what: String,
    } => "invalid {codec} data: {what}"

    /// The payload starts with another number of values than its tensors have.
    Format: ValueCount {
        /// The stored number.
        count: u64,
        /// The tensors' number.
        expected: u64,
    } => "the payload declares {count} values, but the metadata describes {expected}"

    /// The payload cannot be decrypted, or a key was given for a file that is not encrypted.
    Decryption: Decryption {
        /// Why.
        what: &'static str,
    } => "{what}"

    /// The signature is not the one that was asked for.
    Signature: Signature {
        /// What is wrong with it.
        what: String,
    } => "{what}"

    /// An entry of the tensor index ends after the index.
    Format: EntryTooLong {
        /// Number of the entry, from 0.
        entry: u32,
        /// Where the index ends.
        limit: u64,
    } => "entry {entry} is longer than the index, which ends at byte {limit}"

    /// A tensor name that the format does not allow.
    Format: Name {
        /// Number of the entry, from 0.
        entry: u32,
        /// What is wrong with the name.
        what: &'static str,
    } => "the name of entry {entry} {what}"

    /// The index is not sorted by name.
    Format: Unsorted {
        /// The name of the entry before.
        previous: String,
    } => "comes after {previous:?}; the index must be sorted by name"

    /// Two tensors have the same name.
    Format: Duplicate {} => "the name is used twice; tensor names must be unique"

    /// A dtype id that the format does not have.
    Format: UnknownDtype {
        /// The id.
        id: u8,
    } => "unknown dtype id {id}"

    /// A tensor has more dimensions than the format allows.
    Format: TooManyDims {
        /// Their number.
        ndim: u8,
    } => "{ndim} dimensions; at most 8 are allowed"

    /// The number of a tensor's values is out of range.
    Format: DimsOverflow {
        /// The dimensions.
        dims: Vec<u64>,
    } => "the product of its dimensions {dims:?} is out of range"

    /// The stored size does not match dtype and dimensions.
    Format: SizeMismatch {
        /// The dtype.
        dtype: Dtype,
        /// The dimensions.
        dims: Vec<u64>,
        /// The stored size in bytes.
        size: u64,
        /// The size in bytes that dtype and dimensions imply.
        expected: u64,
    } => "size is {size}, but {dtype} {dims:?} takes {expected} bytes"

    /// A data offset is not aligned.
    Format: Misaligned {
        /// The data offset.
        value: u64,
    } => "data offset {value} is not a multiple of 64"

    /// Offset plus size is out of range.
    Format: OffsetOverflow {
        /// The data offset.
        value: u64,
        /// The size in bytes.
        size: u64,
    } => "data offset {value} plus size {size} is out of range"

    /// Two tensors share bytes.
    Format: Overlap {
        /// The tensor that starts first.
        other: String,
        /// Where it ends.
        end: u64,
    } => "overlaps tensor {other:?}, which ends at byte {end}"

    /// A tensor without bytes should be tied to the embedding, but there is none of its shape.
    Format: TiedToNothing {
        /// Its dimensions.
        dims: Vec<u64>,
        /// The tensor that it should be tied to.
        embedding: &'static str,
    } => "is stored without bytes, as a copy of {embedding:?}, but no tensor of that name has the shape {dims:?}"

    /// The file continues after its end.
    Format: TrailingBytes {
        /// How many bytes follow.
        extra: u64,
    } => "the file must end here, but {extra} bytes follow"

    /// A request that the format does not allow.
    Invalid: Invalid {
        /// What is wrong.
        what: String,
    } => "{what}"
}

impl Rule {
    /// The rule is broken in this part of a file, at this byte from its start.
    pub(crate) fn at(self, part: Part, offset: u64) -> Error {
        Error { at: At { part: Some(part), offset: Some(offset), ..At::default() }, rule: self }
    }

    /// The rule is broken in this part of a file, but no byte is to blame.
    pub(crate) fn within(self, part: Part) -> Error {
        Error { at: At { part: Some(part), ..At::default() }, rule: self }
    }

    /// [`Rule::Malformed`] with this text.
    pub(crate) fn malformed(what: impl Into<String>) -> Self {
        Self::Malformed { what: what.into() }
    }
}

impl Error {
    /// Refuse a request for a reason.
    #[must_use]
    pub fn invalid(what: impl Into<String>) -> Self {
        Rule::Invalid { what: what.into() }.into()
    }

    /// Name the tensor that the error is about.
    #[must_use]
    pub fn of_tensor(mut self, name: impl Into<String>) -> Self {
        self.at.tensor = Some(name.into());
        self
    }

    /// A file that was opened with `need` bytes has only `have` now.
    #[must_use]
    pub fn cut_short(need: u64, have: u64) -> Self {
        Rule::CutShort { need }.at(Part::Data, have)
    }

    /// A file of `have` bytes ends before one of its parts does, at `need`.
    pub(crate) fn truncated(part: Part, need: u64, have: u64) -> Self {
        Rule::Truncated { need }.at(part, have)
    }

    /// The offset counts in what a compressed file unpacks to.
    #[cfg(feature = "v1")]
    pub(crate) fn unpacked(mut self) -> Self {
        self.at.is_unpacked = true;
        self
    }

    /// Return the family of the error.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.rule.kind()
    }

    /// Return the name of the tensor that the error is about.
    #[must_use]
    pub fn tensor(&self) -> Option<&str> {
        self.at.tensor.as_deref()
    }

    /// Return the byte that is wrong, counted from the start of the file.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.at.offset
    }

    /// Return the part of the file that is wrong; `None` for a request and for the operating system's errors.
    #[must_use]
    pub fn part(&self) -> Option<Part> {
        self.at.part
    }
}

impl From<Rule> for Error {
    fn from(rule: Rule) -> Self {
        Self { at: At::default(), rule }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Rule::Io(error).into()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let At { part, offset, tensor, is_unpacked } = &self.at;
        // What the magic says is about the whole file, so its place is left out, unless the file ends there.
        let part = part.filter(|part| *part != Part::Magic || self.kind() == Kind::Truncated);
        if let (Some(part), Some(offset)) = (part, offset) {
            write!(formatter, "{} at byte {offset}", part.name())?;
            if *is_unpacked {
                formatter.write_str(" of the unpacked file")?;
            }
            formatter.write_str(if tensor.is_some() { ", " } else { ": " })?;
        }
        if let Some(tensor) = tensor {
            write!(formatter, "tensor {tensor:?}: ")?;
        }
        self.rule.fmt(formatter)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.rule {
            Rule::Io(error) => std::error::Error::source(error),
            _ => None,
        }
    }
}
