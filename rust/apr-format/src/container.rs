//! Any form of `.apr` file, opened.

use std::{io, sync::Arc};

use crate::{
    codec::Codec,
    error::{Error, Part, Result},
    mapping::Mapping,
    sniff::{self, Kind},
    source::{Source, read_vec},
    v2::{
        read::{self, Contents},
        verify::{self, Findings},
    },
    variants::json,
};

/// Which form a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The current container, or its header under an older magic.
    V2,
    /// The JSON container `APR1`.
    Json,
    /// `APR1` in a wrapper, compressed like this.
    Wrapped(Codec),
}

/// An open file: what it says it holds, and where the tensors' bytes are.
#[derive(Debug)]
pub struct Container<S> {
    source: S,
    form: Form,
    contents: Contents,
    unpacked: Option<Arc<Mapping>>,
}

/// Where tensors' offsets count: in the file, or in what a compressed one unpacks to.
#[derive(Debug, Clone, Copy)]
pub enum Image<'a, S> {
    /// The file.
    File(&'a S),
    /// What was unpacked.
    Memory(&'a Arc<Mapping>),
}

impl<S: Source> Source for Image<'_, S> {
    fn size(&self) -> io::Result<u64> {
        match self {
            Self::File(source) => source.size(),
            Self::Memory(pages) => pages.size(),
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File(source) => source.read_at(offset, buffer),
            Self::Memory(pages) => pages.read_at(offset, buffer),
        }
    }
}

impl<S: Source> Container<S> {
    /// Check and open a file of any form.
    ///
    /// # Errors
    /// What the file is instead; the first rule of its form that does not hold.
    pub fn open(source: S) -> Result<Self> {
        let kind = kind(&source)?;
        Self::of_kind(source, &kind)
    }

    fn of_kind(source: S, kind: &Kind) -> Result<Self> {
        let (form, contents, unpacked) = match kind {
            Kind::V2(_) => (Form::V2, read::open(&source)?, None),
            Kind::Json => (Form::Json, json::open(&source)?, None),
            Kind::Wrapped(wrapper) => {
                let size = source.size()?;
                let pages = wrapper.unpack(&source, size)?;
                let mut contents = json::open(&pages).map_err(|error| Error::Unpacked(Box::new(error)))?;
                contents.size = size;
                contents.header.magic = wrapper.magic;
                (Form::Wrapped(wrapper.codec), contents, Some(Arc::new(pages)))
            }
        };
        Ok(Self { source, form, contents, unpacked })
    }

    /// Which form it has.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// What people call its form.
    #[must_use]
    pub fn form_name(&self) -> &'static str {
        match (self.form, &self.contents.header.magic) {
            (Form::V2, b"APR2") => "APR v2 (magic APR2)",
            (Form::V2, b"APRN") => "APR v2 (magic APRN)",
            (Form::V2, _) => "APR v2",
            (Form::Json, _) => "APR1 JSON",
            (Form::Wrapped(Codec::Plain), _) => "APR1 JSON (wrapped)",
            (Form::Wrapped(Codec::Lz4), _) => "APR1 JSON (wrapped, LZ4)",
            (Form::Wrapped(Codec::Zstd), _) => "APR1 JSON (wrapped, zstd)",
        }
    }

    /// What it says it holds.
    #[must_use]
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The file.
    #[must_use]
    pub fn source(&self) -> &S {
        &self.source
    }

    /// Where the tensors' bytes are.
    #[must_use]
    pub fn image(&self) -> Image<'_, S> {
        self.unpacked.as_ref().map_or(Image::File(&self.source), Image::Memory)
    }
}

impl<S: Source> Container<S> {
    fn verify(&self) -> io::Result<Findings> {
        let header = &self.contents.header;
        let checked = match self.form {
            Form::V2 => format!("CRC32 {:#010x}, flags {:#06x}", header.checksum, header.flags),
            Form::Json | Form::Wrapped(_) => "no checksum of its own".into(),
        };
        let mut findings = verify::opened(&self.image(), &self.contents, checked)?;
        if let (Form::Wrapped(codec), Some(pages)) = (self.form, &self.unpacked) {
            let detail = format!("{}, {} bytes unpacked", codec.name(), pages.len());
            findings.checks.insert(1, verify::passed(Part::Packing, detail));
        }
        Ok(findings)
    }
}

fn kind(source: &(impl Source + ?Sized)) -> Result<Kind> {
    let size = source.size()?;
    let prefix = read_vec(source, 0, size.min(sniff::PREFIX as u64))?;
    sniff::kind(&prefix, size)
}

/// Compare the footer with every byte before it, and give it; None where the file has no footer.
///
/// # Errors
/// [`Error::FooterChecksum`], [`Error::CutShort`]; the operating system's.
pub fn check_footer(container: &Container<impl Source>) -> Result<Option<u32>> {
    verify::footer(&container.image(), &container.contents)
}

/// Check a file of any form from its first byte to its last.
///
/// # Errors
/// The operating system's alone: everything else is a finding.
pub fn verify(source: &(impl Source + ?Sized)) -> io::Result<Findings> {
    let (parts, opened) = match kind(source) {
        Err(error) => (V2, Err(error)),
        Ok(kind) => {
            let parts = if matches!(kind, Kind::Wrapped(_)) { WRAPPED } else { V2 };
            (parts, Container::of_kind(source, &kind))
        }
    };
    match opened {
        Err(Error::Io(error)) => Err(error),
        Err(error) => Ok(Findings::unopened(&error, parts)),
        Ok(container) => container.verify(),
    }
}

/// The parts of the forms, in the order in which they are checked.
const V2: &[Part] = &[Part::Magic, Part::Header, Part::Metadata, Part::Index, Part::Data, Part::Footer];
const WRAPPED: &[Part] =
    &[Part::Magic, Part::Packing, Part::Header, Part::Metadata, Part::Index, Part::Data, Part::Footer];
