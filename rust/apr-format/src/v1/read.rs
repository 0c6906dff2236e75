//! Open a version 1 file: check and decrypt it. The payload is decompressed when it is first used.

use std::{borrow::Cow, sync::Arc};

use super::{
    header::{Compression, Header, SIGNATURE_SIZE, SIZE},
    metadata, seal,
    tensors::{self, Described},
};
use crate::{
    codec::Codec,
    contents::{Contents, Metadata},
    crc::crc32,
    error::{Error, Part, Result, Rule},
    index::Index,
    keys::{Keys, Unlock},
    mapping::Mapping,
    source::{Source, read_vec},
};

/// The key that signed a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signer {
    /// The Ed25519 public key in the file.
    pub public_key: [u8; 32],
    /// Whether it is the key that the caller trusts. If not, the signature proves only that the file is as its signer
    /// left it: anyone can sign a file and put their own key into it.
    pub is_trusted: bool,
}

/// What a version 1 file has in addition to the contents of every form.
#[derive(Debug)]
pub struct Opened {
    /// The header.
    pub header: Header,
    /// The signer, if the file is signed; the signature is correct.
    pub signer: Option<Signer>,
    /// Why the shapes in the metadata do not fit the payload, if there are any and they do not.
    pub not_described: Option<String>,
    /// The decrypted payload; `None` if it is not encrypted or there is no key.
    decrypted: Option<Decrypted>,
}

/// A decrypted payload.
#[derive(Debug)]
struct Decrypted {
    /// The payload, still compressed.
    payload: Vec<u8>,
    /// The kind of key that decrypted it, in words.
    key: &'static str,
}

/// Check a file from its first byte to its last and open it.
///
/// The checksum comes before signature and decryption, so that damage is not reported as a wrong key.
///
/// # Errors
/// The first rule that the file breaks; [`Rule::Signature`] or [`Rule::Decryption`] for the keys.
pub fn open(source: &(impl Source + ?Sized), keys: &Keys) -> Result<(Contents, Opened)> {
    let size = source.size()?;
    let header = read_header(source, size)?;
    let footer = check_footer(source, &header)?;
    let signer = check_signature(source, &header, keys)?;
    let json = read_vec(source, SIZE, u64::from(header.metadata_size))?;
    let metadata = metadata::read(json, SIZE)?;
    let decrypted = decrypt(source, &header, keys)?;

    let base = if header.is_in_file() { header.payload_offset() } else { 0 };
    let (tensors, not_described) =
        match tensors::describe(&metadata, u64::from(header.uncompressed_size), base) {
            Described::Tensors(tensors) => (tensors, None),
            Described::Nothing => (Index::default(), None),
            Described::Mismatch(why) => (Index::default(), Some(why)),
        };
    let contents = Contents { metadata: Metadata::Checked(metadata), tensors, footer: Some(footer), size };
    Ok((contents, Opened { header, signer, not_described, decrypted }))
}

fn read_header(source: &(impl Source + ?Sized), size: u64) -> Result<Header> {
    if size < SIZE {
        return Err(Error::truncated(Part::Header, SIZE, size));
    }
    let mut bytes = [0; 32];
    source.read_at(0, &mut bytes)?;
    Header::parse(&bytes, size)
}

fn check_footer(source: &(impl Source + ?Sized), header: &Header) -> Result<(u64, u32)> {
    let offset = header.footer_offset();
    let mut bytes = [0; 4];
    source.read_at(offset, &mut bytes)?;
    let (stored, computed) = (u32::from_le_bytes(bytes), crc32(source, offset)?);
    if stored != computed {
        return Err(Rule::Checksum { stored, computed }.at(Part::Footer, offset));
    }
    Ok((offset, stored))
}

fn check_signature(source: &(impl Source + ?Sized), header: &Header, keys: &Keys) -> Result<Option<Signer>> {
    if !header.is_signed() {
        keys.refuse_trusted()?;
        return Ok(None);
    }
    let at = header.payload_end();
    let signed = read_vec(source, 0, at + SIGNATURE_SIZE)?;
    let (rest, public_key) = signed.split_last_chunk::<32>().ok_or_else(unread)?;
    let (message, signature) = rest.split_last_chunk::<64>().ok_or_else(unread)?;
    seal::check_signature(message, signature, public_key, keys.trusted.as_ref(), at)?;
    Ok(Some(Signer { public_key: *public_key, is_trusted: keys.trusted.is_some() }))
}

/// Return the error for a read of too few bytes, which [`read_vec`] does not return.
fn unread() -> Error {
    std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()
}

fn decrypt(source: &(impl Source + ?Sized), header: &Header, keys: &Keys) -> Result<Option<Decrypted>> {
    if !header.is_encrypted() {
        keys.refuse_unlock()?;
        return Ok(None);
    }
    let Some(unlock) = &keys.unlock else { return Ok(None) };
    let payload = read_vec(source, header.payload_offset(), u64::from(header.payload_size))?;
    let payload = seal::decrypt(payload, unlock, header.payload_offset())?;
    let key = match unlock {
        Unlock::Password(_) => "password",
        Unlock::Recipient(_) => "recipient key",
    };
    Ok(Some(Decrypted { payload, key }))
}

impl Opened {
    /// Whether the payload is encrypted and the file was opened without a key.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.header.is_encrypted() && self.decrypted.is_none()
    }

    /// Return the kind of key that decrypted the payload, in words.
    #[must_use]
    pub fn decrypted_with(&self) -> Option<&'static str> {
        self.decrypted.as_ref().map(|decrypted| decrypted.key)
    }

    /// Return the size of the payload in bytes, decrypted and decompressed.
    #[must_use]
    pub fn payload_size(&self) -> usize {
        usize::try_from(self.header.uncompressed_size).unwrap_or(usize::MAX)
    }

    /// Return the payload in memory, decrypted and decompressed; `None` if the file holds it as it is.
    ///
    /// # Errors
    /// [`Rule::Decryption`] if it is locked; [`Rule::Compressed`] for invalid data; [`Rule::ValueCount`] if it does not
    /// start with the number of values that the tensors have; [`Rule::Io`].
    pub fn image(&self, source: &(impl Source + ?Sized), tensors: &Index) -> Result<Option<Arc<Mapping>>> {
        let pages = if self.header.is_in_file() {
            None
        } else {
            let packed = self.packed(source)?;
            Some(Arc::new(Mapping::filled(self.payload_size(), |out| packed.unpack(out))?))
        };
        if !tensors.is_empty() {
            let mut count = [0; 8];
            let offset = if pages.is_some() { 0 } else { self.header.payload_offset() };
            match &pages {
                Some(pages) => pages.read_at(offset, &mut count)?,
                None => source.read_at(offset, &mut count)?,
            }
            let (count, expected) =
                (u64::from_le_bytes(count), tensors.entries().map(|entry| entry.count()).sum());
            if count != expected {
                return Err(Rule::ValueCount { count, expected }.at(Part::Payload, offset));
            }
        }
        Ok(pages)
    }

    /// Return the payload, still compressed. Its declared size is checked before any memory is allocated for it.
    ///
    /// # Errors
    /// [`Rule::Decryption`] if it is locked; [`Rule::Compressed`] if it cannot have its declared size; [`Rule::Io`].
    pub fn packed(&self, source: &(impl Source + ?Sized)) -> Result<Packed<'_>> {
        let start = self.header.payload_offset();
        if self.is_locked() {
            let what = "the payload is encrypted; open the file with its password or recipient key";
            return Err(Rule::Decryption { what }.at(Part::Encryption, start));
        }
        let stored = match &self.decrypted {
            Some(decrypted) => Cow::Borrowed(decrypted.payload.as_slice()),
            None => Cow::Owned(read_vec(source, start, u64::from(self.header.payload_size))?),
        };
        let codec = match self.header.compression {
            Compression::None => Codec::Plain,
            Compression::Zstd | Compression::ZstdMax => Codec::Zstd,
            Compression::Lz4 => Codec::Lz4,
        };
        let packed = Packed { stored, codec, start };
        packed.codec.check(packed.body(self.header.uncompressed_size)?, self.payload_size(), start)?;
        Ok(packed)
    }
}

/// A payload that is still compressed.
pub struct Packed<'a> {
    stored: Cow<'a, [u8]>,
    codec: Codec,
    start: u64,
}

impl Packed<'_> {
    /// Decompress it to `out`, which must have its size.
    ///
    /// # Errors
    /// [`Rule::Compressed`] for invalid data.
    pub fn unpack(&self, out: &mut [u8]) -> Result<()> {
        let size = u32::try_from(out.len()).unwrap_or(u32::MAX);
        self.codec.unpack(self.body(size)?, out, self.start)
    }

    /// Return the bytes for the codec. Before an LZ4 block stands its uncompressed size, which must be `size`.
    fn body(&self, size: u32) -> Result<&[u8]> {
        if self.codec != Codec::Lz4 {
            return Ok(&self.stored);
        }
        let (codec, offset) = (self.codec.name(), self.start);
        match self.stored.split_first_chunk() {
            Some((length, body)) if *length == size.to_le_bytes() => Ok(body),
            Some((length, _)) => {
                let what = format!(
                    "the stored size is {}, but the header declares {size}",
                    u32::from_le_bytes(*length)
                );
                Err(Rule::Compressed { codec, what }.at(Part::Packing, offset))
            }
            None => {
                let what = "the stored size is missing".into();
                Err(Rule::Compressed { codec, what }.at(Part::Packing, offset))
            }
        }
    }
}
