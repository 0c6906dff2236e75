//! Any form of `.apr` file, opened.

#[cfg(feature = "v1")]
use std::sync::OnceLock;
use std::{borrow::Cow, io, sync::Arc};

#[cfg(feature = "v1")]
use crate::{
    codec::Codec,
    v1::{self, read::Opened},
    variants::wrapper::Wrapper,
};
use crate::{
    contents::Contents,
    error::{Error, Part, Result, Rule},
    json::member,
    keys::Keys,
    mapping::Mapping,
    sniff::{self, Detected},
    source::{Source, read_vec},
    v2,
    variants::json,
    verify::{self, Check, Findings},
    watch::{Watch, Watched},
};

/// An open file: what it says it holds, and where the tensors' bytes are.
#[derive(Debug)]
pub struct Container<S> {
    source: S,
    contents: Contents,
    form: Form,
}

/// What the forms have beside what all of them have.
#[derive(Debug)]
pub enum Form {
    /// The current container, or its header under an older magic.
    V2(v2::header::Header),
    /// The JSON container `APR1`.
    Json(json::Header),
    /// `APR1` in a wrapper of this magic, compressed like this, and what it unpacked to.
    #[cfg(feature = "v1")]
    Wrapped {
        /// `APR2` or `APR\0`.
        magic: [u8; 4],
        /// How the file within is compressed.
        codec: Codec,
        /// Of the file within.
        header: json::Header,
        /// The file within.
        image: Arc<Mapping>,
    },
    /// v1, and its payload once it was asked for: None where it lies in the file as it is.
    #[cfg(feature = "v1")]
    V1(Box<Opened>, OnceLock<Option<Arc<Mapping>>>),
}

impl Form {
    /// What people call it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::V2(header) if &header.magic == b"APR2" => "APR v2 (magic APR2)",
            Self::V2(header) if &header.magic == b"APRN" => "APR v2 (magic APRN)",
            Self::V2(_) => "APR v2",
            Self::Json(_) => "APR1 JSON",
            #[cfg(feature = "v1")]
            Self::Wrapped { codec: Codec::Plain, .. } => "APR1 JSON (wrapped)",
            #[cfg(feature = "v1")]
            Self::Wrapped { codec: Codec::Lz4, .. } => "APR1 JSON (wrapped, LZ4)",
            #[cfg(feature = "v1")]
            Self::Wrapped { codec: Codec::Zstd, .. } => "APR1 JSON (wrapped, zstd)",
            #[cfg(feature = "v1")]
            Self::V1(..) => "APR v1",
        }
    }
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
    /// Check and open a file of any form, without keys.
    ///
    /// # Errors
    /// What the file is instead; the first rule of its form that does not hold.
    pub fn open(source: S) -> Result<Self> {
        Self::open_with(source, &Keys::default())
    }

    /// As [`Self::open`], with the keys that the caller has.
    ///
    /// # Errors
    /// Also a key that does not fit, or that the file has no use for.
    pub fn open_with(source: S, keys: &Keys) -> Result<Self> {
        let kind = kind(&source)?;
        Self::of_kind(source, &kind, keys)
    }

    fn of_kind(source: S, kind: &Detected, keys: &Keys) -> Result<Self> {
        let (form, contents) = match kind {
            Detected::V2(_) => {
                let (header, contents) = v2::read::open(&source)?;
                (Form::V2(header), contents)
            }
            Detected::Json => {
                let (header, contents) = json::open(&source)?;
                (Form::Json(header), contents)
            }
            #[cfg(feature = "v1")]
            Detected::Wrapped(wrapper) => {
                let size = source.size()?;
                let pages = wrapper.unpack(&source, size)?;
                let (header, mut contents) = json::open(&pages).map_err(Error::unpacked)?;
                contents.size = size;
                let &Wrapper { magic, codec, .. } = wrapper;
                (Form::Wrapped { magic, codec, header, image: Arc::new(pages) }, contents)
            }
            #[cfg(feature = "v1")]
            Detected::V1 => {
                let (contents, opened) = v1::read::open(&source, keys)?;
                return Ok(Self { source, contents, form: Form::V1(Box::new(opened), OnceLock::new()) });
            }
            #[cfg(not(feature = "v1"))]
            Detected::Wrapped(_) | Detected::V1 => return Err(sniff::left_out(kind)),
        };
        keys.refuse()?;
        Ok(Self { source, contents, form })
    }

    /// Its form, with what only that form has.
    #[must_use]
    pub fn form(&self) -> &Form {
        &self.form
    }

    /// What it says it holds.
    #[must_use]
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The metadata's JSON text, checked.
    ///
    /// # Errors
    /// [`Rule::Malformed`], [`Rule::CutShort`]; the operating system's.
    pub fn metadata(&self) -> Result<Cow<'_, str>> {
        self.contents.metadata(&self.source)
    }

    /// The JSON text of one key's value, without what else the metadata hold; of duplicate keys the last counts.
    ///
    /// # Errors
    /// As [`Self::metadata`].
    pub fn member(&self, key: &str) -> Result<Option<String>> {
        Ok(member(&self.metadata()?, key).map(Into::into))
    }

    /// The file.
    #[must_use]
    pub fn source(&self) -> &S {
        &self.source
    }

    /// What v1 has beside what every form has; None for the others.
    #[cfg(feature = "v1")]
    #[must_use]
    pub fn v1(&self) -> Option<&Opened> {
        match &self.form {
            Form::V1(opened, _) => Some(opened),
            _ => None,
        }
    }

    /// Where the tensors' bytes are. A v1 payload is unpacked the first time.
    ///
    /// # Errors
    /// Of v1: [`Rule::Decryption`] without a key, [`Rule::Compressed`], [`Rule::ValueCount`]; the operating system's.
    pub fn image(&self) -> Result<Image<'_, S>> {
        let pages = match &self.form {
            Form::V2(_) | Form::Json(_) => None,
            #[cfg(feature = "v1")]
            Form::Wrapped { image, .. } => Some(image),
            #[cfg(feature = "v1")]
            Form::V1(opened, ready) => {
                if ready.get().is_none() {
                    // Of two threads that unpack at once, the second one's result is dropped.
                    let _ = ready.set(opened.image(&self.source, &self.contents.tensors)?);
                }
                ready.get().and_then(Option::as_ref)
            }
        };
        Ok(pages.map_or(Image::File(&self.source), Image::Memory))
    }

    /// Compare the footer with every byte before it, and give it; None where the file has no footer.
    ///
    /// # Errors
    /// [`Rule::Checksum`], [`Rule::CutShort`]; the operating system's.
    pub fn check_footer(&self, watch: &Watch) -> Result<Option<u32>> {
        match &self.form {
            #[cfg(feature = "v1")]
            Form::Wrapped { image, .. } => verify::footer(image.as_ref(), &self.contents),
            _ => verify::footer(&Watched { source: &self.source, watch }, &self.contents),
        }
    }

    fn verify(&self) -> io::Result<Findings> {
        let magic = |magic: [u8; 4], (major, minor)| {
            let magic = String::from_utf8_lossy(&magic).replace('\0', "\\0");
            format!("{magic}, version {major}.{minor}")
        };
        let none = || "no checksum of its own".to_owned();
        match &self.form {
            Form::V2(header) => {
                let magic = magic(header.magic, header.version);
                let checked = format!("CRC32 {:#010x}, flags {:#06x}", header.checksum, header.flags);
                verify::opened(&self.source, &self.contents, magic, checked)
            }
            Form::Json(_) => {
                verify::opened(&self.source, &self.contents, magic(json::MAGIC, json::VERSION), none())
            }
            #[cfg(feature = "v1")]
            Form::Wrapped { magic: outer, codec, image, .. } => {
                let magic = magic(*outer, json::VERSION);
                let mut findings = verify::opened(image.as_ref(), &self.contents, magic, none())?;
                let detail = format!("{}, {} bytes unpacked", codec.name(), image.len());
                findings.checks.insert(1, verify::passed(Part::Packing, detail));
                Ok(findings)
            }
            #[cfg(feature = "v1")]
            Form::V1(opened, _) => {
                let payload = match self.image() {
                    Err(Error { rule: Rule::Io(error), .. }) => return Err(error),
                    other => other.map(|_| ()),
                };
                let checks = v1::verify::checks(&self.contents, opened, payload.as_ref().copied());
                Ok(Findings { opened: true, checks })
            }
        }
    }
}

fn kind(source: &(impl Source + ?Sized)) -> Result<Detected> {
    let size = source.size()?;
    let prefix = read_vec(source, 0, size.min(sniff::PREFIX_SIZE as u64))?;
    sniff::detect(&prefix, size)
}

/// Check a file of any form from its first byte to its last, without keys.
///
/// # Errors
/// The operating system's alone: everything else is a finding.
pub fn verify(source: &(impl Source + ?Sized)) -> io::Result<Findings> {
    verify_with(source, &Keys::default())
}

/// As [`verify`], with the keys that the caller has.
///
/// # Errors
/// As [`verify`].
pub fn verify_with(source: &(impl Source + ?Sized), keys: &Keys) -> io::Result<Findings> {
    let kind = match kind(source) {
        Ok(kind) => kind,
        Err(Error { rule: Rule::Io(error), .. }) => return Err(error),
        Err(error) => return Ok(Findings::unopened(&error, V2)),
    };
    let error = match Container::of_kind(source, &kind, keys) {
        Ok(container) => return container.verify(),
        Err(Error { rule: Rule::Io(error), .. }) => return Err(error),
        Err(error) => error,
    };
    let parts = match kind {
        Detected::V2(_) | Detected::Json => V2,
        #[cfg(feature = "v1")]
        Detected::Wrapped(_) => WRAPPED,
        #[cfg(feature = "v1")]
        Detected::V1 => v1::verify::PARTS,
        #[cfg(not(feature = "v1"))]
        Detected::Wrapped(_) | Detected::V1 => V2,
    };
    let mut findings = Findings::unopened(&error, parts);
    if let Detected::V2(_) = kind {
        // They come before what is wrong, but opening did not look at them.
        let looked_over = |check: &&mut Check| check.part == Part::Metadata && check.passed == Some(true);
        if let Some(check) = findings.checks.iter_mut().find(looked_over) {
            *check = verify::metadata(v2::read::metadata(source))?;
        }
    }
    Ok(findings)
}

/// The parts of the forms, in the order in which they are checked.
const V2: &[Part] = &[Part::Magic, Part::Header, Part::Metadata, Part::Index, Part::Data, Part::Footer];
#[cfg(feature = "v1")]
const WRAPPED: &[Part] =
    &[Part::Magic, Part::Packing, Part::Header, Part::Metadata, Part::Index, Part::Data, Part::Footer];
