//! The header: the 32 bytes at the start of a version 1 file.

use crate::{
    codec::MAX_UNPACKED,
    contents::FOOTER_SIZE,
    error::{Error, Part, Result, Rule},
    json::MAX_READ,
};

/// Bytes of the header. The metadata start right after it.
pub const SIZE: u64 = 32;
/// The magic.
pub const MAGIC: [u8; 4] = *b"APRN";
/// Bytes of an Ed25519 signature and the public key after it.
pub const SIGNATURE_SIZE: u64 = 64 + 32;

/// Bits of the flags.
pub mod flags {
    /// The payload is encrypted.
    pub const ENCRYPTED: u8 = 1;
    /// A signature follows the payload.
    pub const SIGNED: u8 = 1 << 1;
}

/// How the payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// No compression.
    None,
    /// One zstd frame, written at level 3.
    Zstd,
    /// One zstd frame, written at level 19.
    ZstdMax,
    /// The uncompressed size as a u32, then one LZ4 block.
    Lz4,
}

impl Compression {
    fn from_id(id: u8) -> Option<Self> {
        [Self::None, Self::Zstd, Self::ZstdMax, Self::Lz4].get(usize::from(id)).copied()
    }

    /// Return the name that reports use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zstd => "zstd",
            Self::ZstdMax => "zstd19",
            Self::Lz4 => "lz4",
        }
    }
}

/// The fields of the header, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Major and minor version.
    pub version: (u8, u8),
    /// The number of the kind of model.
    pub model_type: u16,
    /// Bytes of the metadata.
    pub metadata_size: u32,
    /// Bytes of the payload as stored.
    pub payload_size: u32,
    /// Bytes of the payload once decrypted and decompressed.
    pub uncompressed_size: u32,
    /// How the payload is compressed.
    pub compression: Compression,
    /// The bits of [`flags`], and others without a meaning here.
    pub flags: u8,
    /// The score that the writer gave the model, 0 to 100.
    pub quality: u8,
    /// The last nine bytes, zero in every known file.
    pub reserved: [u8; 9],
}

impl Header {
    /// Parse and check the header of a file of `size` bytes.
    ///
    /// # Errors
    /// [`Rule::Version`] for a major version other than 1; [`Rule::Malformed`] for a wrong field; [`Rule::Truncated`] or
    /// [`Rule::TrailingBytes`] if the parts of the file are not exactly as long as the file.
    pub fn parse(bytes: &[u8; 32], size: u64) -> Result<Self> {
        let version = (bytes[4], bytes[5]);
        if version.0 != 1 {
            return Err(Rule::Version { major: version.0, minor: version.1 }.at(Part::Header, 4));
        }
        let wrong = |offset, what| Rule::Malformed { what }.at(Part::Header, offset);
        let compression = Compression::from_id(bytes[20])
            .ok_or_else(|| wrong(20, format!("unknown compression {}", bytes[20])))?;
        let header = Self {
            version,
            model_type: u16::from_le_bytes([bytes[6], bytes[7]]),
            metadata_size: word(bytes, 8),
            payload_size: word(bytes, 12),
            uncompressed_size: word(bytes, 16),
            compression,
            flags: bytes[21],
            quality: bytes[22],
            reserved: std::array::from_fn(|i| bytes[23 + i]),
        };
        header.check()?;
        header.check_size(size)?;
        Ok(header)
    }

    fn check(&self) -> Result<()> {
        let wrong = |offset, what| Err(Rule::Malformed { what }.at(Part::Header, offset));
        let [metadata, stored, unpacked] =
            [self.metadata_size, self.payload_size, self.uncompressed_size].map(u64::from);
        if metadata == 0 {
            return wrong(8, "metadata_size is 0, but the metadata must be a map".into());
        }
        if metadata > MAX_READ {
            return wrong(8, format!("metadata_size {metadata} is above the limit of 64 MiB"));
        }
        if unpacked > MAX_UNPACKED {
            return wrong(16, format!("uncompressed_size {unpacked} is above the limit of 1 GiB"));
        }
        if self.is_in_file() && stored != unpacked {
            return wrong(
                16,
                format!(
                    "uncompressed_size is {unpacked}, but the payload is not compressed and has {stored} bytes"
                ),
            );
        }
        if self.is_encrypted() && stored < super::seal::MIN_SIZE {
            return wrong(12, format!("payload_size {stored} is too small for an encrypted payload"));
        }
        Ok(())
    }

    /// Check that a file of `have` bytes has all its parts and nothing more.
    fn check_size(&self, have: u64) -> Result<()> {
        for (part, need) in [
            (Part::Metadata, self.payload_offset()),
            (Part::Payload, self.payload_end()),
            (Part::Signature, self.footer_offset()),
            (Part::Footer, self.footer_offset() + FOOTER_SIZE),
        ] {
            if need > have {
                return Err(Error::truncated(part, need, have));
            }
        }
        let end = self.footer_offset() + FOOTER_SIZE;
        if have > end {
            return Err(Rule::TrailingBytes { extra: have - end }.at(Part::Footer, end));
        }
        Ok(())
    }

    /// Whether the payload is encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.flags & flags::ENCRYPTED != 0
    }

    /// Whether the file holds the payload as it is, neither compressed nor encrypted.
    #[must_use]
    pub fn is_in_file(&self) -> bool {
        self.compression == Compression::None && !self.is_encrypted()
    }

    /// Whether the file is signed.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        self.flags & flags::SIGNED != 0
    }

    /// Return the offset of the payload.
    #[must_use]
    pub fn payload_offset(&self) -> u64 {
        SIZE + u64::from(self.metadata_size)
    }

    /// Where the payload ends. A signature starts there.
    #[must_use]
    pub fn payload_end(&self) -> u64 {
        self.payload_offset() + u64::from(self.payload_size)
    }

    /// Return the offset of the CRC32.
    #[must_use]
    pub fn footer_offset(&self) -> u64 {
        self.payload_end() + if self.is_signed() { SIGNATURE_SIZE } else { 0 }
    }
}

/// Read a u32 at a constant place.
fn word(bytes: &[u8; 32], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}
