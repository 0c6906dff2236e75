//! An open file of any form.

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

/// An open file: what it contains, and where the bytes of the tensors are.
#[derive(Debug)]
pub struct Container<S> {
    source: S,
    contents: Contents,
    form: Form,
}

/// The form of a file, with what only that form has.
#[derive(Debug)]
pub enum Form {
    /// Version 2, under its own or an older magic.
    V2(v2::header::Header),
    /// The JSON container, magic `APR1`.
    Json(json::Header),
    /// A JSON container in a wrapper.
    #[cfg(feature = "v1")]
    Wrapped {
        /// The magic of the wrapper, `APR2` or `APR\0`.
        magic: [u8; 4],
        /// The compression of the file inside.
        codec: Codec,
        /// The header of the file inside.
        header: json::Header,
        /// The file inside, decompressed.
        image: Arc<Mapping>,
    },
    /// Version 1, and its payload once it was used: `None` if it is stored as it is.
    #[cfg(feature = "v1")]
    V1(Box<Opened>, OnceLock<Option<Arc<Mapping>>>),
}

impl Form {
    /// Return the name that people use.
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

/// The bytes in which the offsets of tensors count.
#[derive(Debug, Clone, Copy)]
pub enum Image<'a, S> {
    /// The file itself.
    File(&'a S),
    /// What the file decompresses to.
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
    /// Open a file of any form and check its structure.
    ///
    /// # Errors
    /// The first rule that the file breaks; for a file of another format, which one it is.
    pub fn open(source: S) -> Result<Self> {
        Self::open_with(source, &Keys::default())
    }

    /// Open a file of any form with keys to decrypt it or to check its signature.
    ///
    /// # Errors
    /// The first rule that the file breaks; [`Rule::Decryption`] or [`Rule::Signature`] for a key that is wrong or that
    /// the file has no use for.
    pub fn open_with(source: S, keys: &Keys) -> Result<Self> {
        let detected = detect(&source)?;
        Self::open_as(source, &detected, keys)
    }

    fn open_as(source: S, detected: &Detected, keys: &Keys) -> Result<Self> {
        let (form, contents) = match detected {
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
            Detected::Wrapped(_) | Detected::V1 => return Err(sniff::left_out(detected)),
        };
        keys.refuse()?;
        Ok(Self { source, contents, form })
    }

    /// Return the form of the file.
    #[must_use]
    pub fn form(&self) -> &Form {
        &self.form
    }

    /// Return what every form has: the tensor index, the footer and the size.
    #[must_use]
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Return the JSON text of the metadata, checked.
    ///
    /// # Errors
    /// [`Rule::Malformed`], [`Rule::CutShort`], [`Rule::Io`].
    pub fn metadata(&self) -> Result<Cow<'_, str>> {
        self.contents.metadata(&self.source)
    }

    /// Return the JSON text of one value of the metadata. Of a repeated key, the last value counts.
    ///
    /// # Errors
    /// Those of [`Self::metadata`].
    pub fn member(&self, key: &str) -> Result<Option<String>> {
        Ok(member(&self.metadata()?, key).map(Into::into))
    }

    /// Return what the file was opened from.
    #[must_use]
    pub fn source(&self) -> &S {
        &self.source
    }

    /// Return what only version 1 has; `None` for every other form.
    #[cfg(feature = "v1")]
    #[must_use]
    pub fn v1(&self) -> Option<&Opened> {
        match &self.form {
            Form::V1(opened, _) => Some(opened),
            _ => None,
        }
    }

    /// Return the bytes in which the offsets of tensors count. A version 1 payload is decompressed by the first call.
    ///
    /// # Errors
    /// For version 1, [`Rule::Decryption`] without a key, [`Rule::Compressed`], [`Rule::ValueCount`], [`Rule::Io`].
    pub fn image(&self) -> Result<Image<'_, S>> {
        let pages = match &self.form {
            Form::V2(_) | Form::Json(_) => None,
            #[cfg(feature = "v1")]
            Form::Wrapped { image, .. } => Some(image),
            #[cfg(feature = "v1")]
            Form::V1(opened, ready) => {
                if ready.get().is_none() {
                    // If two threads decompress at the same time, the later result is dropped. A lock would make every
                    // reader wait for the first one instead.
                    let _ = ready.set(opened.image(&self.source, &self.contents.tensors)?);
                }
                ready.get().and_then(Option::as_ref)
            }
        };
        Ok(pages.map_or(Image::File(&self.source), Image::Memory))
    }

    /// Compare the footer with the bytes before it and return it; `None` if the file has no footer.
    ///
    /// # Errors
    /// [`Rule::Checksum`], [`Rule::CutShort`], [`Rule::Io`].
    pub fn check_footer(&self, watch: &Watch) -> Result<Option<u32>> {
        match &self.form {
            // The footer is that of the file inside, which is in memory.
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
        let no_checksum = || "no checksum of its own".to_owned();
        match &self.form {
            Form::V2(header) => {
                let magic = magic(header.magic, header.version);
                let checked = format!("CRC32 {:#010x}, flags {:#06x}", header.checksum, header.flags);
                verify::opened(&self.source, &self.contents, magic, checked)
            }
            Form::Json(_) => {
                let magic = magic(json::MAGIC, json::VERSION);
                verify::opened(&self.source, &self.contents, magic, no_checksum())
            }
            #[cfg(feature = "v1")]
            Form::Wrapped { magic: outer, codec, image, .. } => {
                let magic = magic(*outer, json::VERSION);
                let mut findings = verify::opened(image.as_ref(), &self.contents, magic, no_checksum())?;
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

fn detect(source: &(impl Source + ?Sized)) -> Result<Detected> {
    let size = source.size()?;
    let prefix = read_vec(source, 0, size.min(sniff::PREFIX_SIZE as u64))?;
    sniff::detect(&prefix, size)
}

/// Check every byte of a file of any form.
///
/// # Errors
/// Only those of the operating system. Everything else is a finding.
pub fn verify(source: &(impl Source + ?Sized)) -> io::Result<Findings> {
    verify_with(source, &Keys::default())
}

/// Check every byte of a file of any form, with keys to decrypt it or to check its signature.
///
/// # Errors
/// Only those of the operating system. Everything else is a finding.
pub fn verify_with(source: &(impl Source + ?Sized), keys: &Keys) -> io::Result<Findings> {
    let detected = match detect(source) {
        Ok(detected) => detected,
        Err(Error { rule: Rule::Io(error), .. }) => return Err(error),
        Err(error) => return Ok(Findings::unopened(&error, PLAIN)),
    };
    let error = match Container::open_as(source, &detected, keys) {
        Ok(container) => return container.verify(),
        Err(Error { rule: Rule::Io(error), .. }) => return Err(error),
        Err(error) => error,
    };
    let parts = match detected {
        Detected::V2(_) | Detected::Json => PLAIN,
        #[cfg(feature = "v1")]
        Detected::Wrapped(_) => WRAPPED,
        #[cfg(feature = "v1")]
        Detected::V1 => v1::verify::PARTS,
        #[cfg(not(feature = "v1"))]
        Detected::Wrapped(_) | Detected::V1 => PLAIN,
    };
    let mut findings = Findings::unopened(&error, parts);
    if let Detected::V2(_) = detected {
        // Opening a version 2 file does not read the metadata. If a later part is wrong, they are still unchecked.
        let is_metadata = |check: &&mut Check| check.part == Part::Metadata && check.passed == Some(true);
        if let Some(check) = findings.checks.iter_mut().find(is_metadata) {
            *check = verify::metadata(v2::read::metadata(source))?;
        }
    }
    Ok(findings)
}

/// The parts of version 2 and of the JSON container, in the order in which they are checked.
const PLAIN: &[Part] = &[Part::Magic, Part::Header, Part::Metadata, Part::Index, Part::Data, Part::Footer];
/// The parts of a wrapped JSON container.
#[cfg(feature = "v1")]
const WRAPPED: &[Part] =
    &[Part::Magic, Part::Packing, Part::Header, Part::Metadata, Part::Index, Part::Data, Part::Footer];
