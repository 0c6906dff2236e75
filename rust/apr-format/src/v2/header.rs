//! The header of version 2: the first 64 bytes of a file.

use crate::error::{Error, Part, Result, Rule};

/// The size of the header in bytes.
pub const SIZE: u64 = 64;
/// The magic of written files. Older files have others, which are read too.
pub const MAGIC: [u8; 4] = *b"APR\0";
/// The offset of the flags in the header.
pub(super) const FLAGS: u64 = 6;
/// The version of written files. Files with a higher minor version are read too.
pub const VERSION: (u8, u8) = (2, 0);

/// The bits of the flags.
pub mod flags {
    /// LZ4. Some writers set it although nothing is compressed.
    pub const LZ4_COMPRESSED: u16 = 1;
    /// zstd. Some writers set it although nothing is compressed.
    pub const ZSTD_COMPRESSED: u16 = 1 << 1;
    /// AES-256-GCM. No writer ever set it, so its layout is not known.
    pub const ENCRYPTED: u16 = 1 << 2;
    /// Ed25519. No writer ever set it, so its layout is not known.
    pub const SIGNED: u16 = 1 << 3;
    /// The file is one of several.
    pub const SHARDED: u16 = 1 << 4;
    /// At least one tensor is quantized.
    pub const QUANTIZED: u16 = 1 << 5;
    /// The data are row-major. Every current writer sets it.
    pub const ROW_MAJOR: u16 = 1 << 10;
    /// The data are column-major, which is forbidden.
    pub const COLUMN_MAJOR: u16 = 1 << 11;
    /// The bits that must not be set when a file is written.
    pub const NEVER_WRITTEN: u16 = LZ4_COMPRESSED | ZSTD_COMPRESSED | ENCRYPTED | SIGNED | COLUMN_MAJOR;
}

/// The fields of the header, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The first four bytes.
    pub magic: [u8; 4],
    /// Major and minor version.
    pub version: (u8, u8),
    /// The [`flags`].
    pub flags: u16,
    /// The number of tensors in the index.
    pub tensor_count: u32,
    /// Where the metadata start.
    pub metadata_offset: u64,
    /// Bytes of the metadata.
    pub metadata_size: u32,
    /// Where the tensor index starts.
    pub tensor_index_offset: u64,
    /// Where the tensor data start.
    pub data_offset: u64,
    /// CRC32 of the other 60 bytes.
    pub checksum: u32,
    /// The last 20 bytes, which are zero in every known file.
    pub reserved: [u8; 20],
}

/// Return the CRC32 of the header without the four bytes of the checksum itself.
#[must_use]
pub fn checksum(bytes: &[u8; 64]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..40]);
    hasher.update(&bytes[44..]);
    hasher.finalize()
}

/// Whether the stored checksum matches the other bytes.
#[must_use]
pub fn checksum_holds(bytes: &[u8; 64]) -> bool {
    Header::parse(bytes).checksum == checksum(bytes)
}

impl Header {
    /// Read the fields without checking them.
    #[must_use]
    pub fn parse(bytes: &[u8; 64]) -> Self {
        Self {
            magic: field(bytes, 0),
            version: (bytes[4], bytes[5]),
            flags: u16::from_le_bytes(field(bytes, 6)),
            tensor_count: u32::from_le_bytes(field(bytes, 8)),
            metadata_offset: u64::from_le_bytes(field(bytes, 12)),
            metadata_size: u32::from_le_bytes(field(bytes, 20)),
            tensor_index_offset: u64::from_le_bytes(field(bytes, 24)),
            data_offset: u64::from_le_bytes(field(bytes, 32)),
            checksum: u32::from_le_bytes(field(bytes, 40)),
            reserved: field(bytes, 44),
        }
    }

    /// Return the bytes of the header with a correct checksum, whatever the field `checksum` contains.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..4].copy_from_slice(&self.magic);
        bytes[4] = self.version.0;
        bytes[5] = self.version.1;
        bytes[6..8].copy_from_slice(&self.flags.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.tensor_count.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.metadata_offset.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.metadata_size.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.tensor_index_offset.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.data_offset.to_le_bytes());
        bytes[44..].copy_from_slice(&self.reserved);
        let checksum = checksum(&bytes);
        bytes[40..44].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Return where the metadata end. It is exact if [`Self::check`] passed, and saturates otherwise.
    #[must_use]
    pub fn metadata_end(&self) -> u64 {
        self.metadata_offset.saturating_add(u64::from(self.metadata_size))
    }

    /// Check the version, the flags, and that the parts follow one another.
    ///
    /// # Errors
    /// [`Rule::Version`], [`Rule::Unsupported`], [`Rule::Malformed`].
    pub fn check(&self) -> Result<()> {
        let (major, minor) = self.version;
        if major != VERSION.0 {
            return Err(Rule::Version { major, minor }.at(Part::Header, 4));
        }
        self.check_flags()?;
        let wrong = |offset, what: String| Err(Rule::Malformed { what }.at(Part::Header, offset));
        let metadata = self.metadata_offset;
        if metadata < SIZE {
            return wrong(12, format!("metadata_offset {metadata} is inside the header"));
        }
        if self.metadata_size == 0 {
            return wrong(20, "metadata_size is 0, but the metadata must be a JSON object".into());
        }
        let size = self.metadata_size;
        if u64::from(size) > crate::json::MAX_READ {
            return wrong(20, format!("metadata_size {size} is above the limit of 64 MiB"));
        }
        let index = self.tensor_index_offset;
        if metadata.checked_add(u64::from(size)).is_none_or(|end| end > index) {
            return wrong(
                24,
                format!(
                    "tensor_index_offset {index} is before the end of the metadata ({size} bytes from {metadata})"
                ),
            );
        }
        let data = self.data_offset;
        if data < index {
            return wrong(32, format!("data_offset {data} is before the tensor index at {index}"));
        }
        if !data.is_multiple_of(super::ALIGN) {
            return wrong(32, format!("data_offset {data} is not a multiple of 64"));
        }
        Ok(())
    }

    fn check_flags(&self) -> Result<()> {
        let has = |bit| self.flags & bit != 0;
        if has(flags::COLUMN_MAJOR) {
            let what = "flag LAYOUT_COLUMN_MAJOR is set, but data must be row-major; convert the model again with a \
                        current tool";
            return Err(Rule::malformed(what).at(Part::Header, FLAGS));
        }
        for (bit, name) in [(flags::ENCRYPTED, "ENCRYPTED"), (flags::SIGNED, "SIGNED")] {
            if has(bit) {
                let what = format!("flag {name} in a version 2 file");
                return Err(Rule::Unsupported { what }.at(Part::Header, FLAGS));
            }
        }
        Ok(())
    }

    /// Check that a file of `have` bytes contains the metadata and the index.
    ///
    /// # Errors
    /// [`Rule::Truncated`].
    pub fn check_size(&self, have: u64) -> Result<()> {
        for (part, need) in [(Part::Metadata, self.metadata_end()), (Part::Index, self.data_offset)] {
            if need > have {
                return Err(Error::truncated(part, need, have));
            }
        }
        Ok(())
    }
}

/// Return `N` bytes of the header. `at` is a constant, so the range is always inside.
fn field<const N: usize>(bytes: &[u8; 64], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}
