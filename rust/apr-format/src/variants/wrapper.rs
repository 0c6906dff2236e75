//! The wrapper around a whole JSON container:
//!
//! ```text
//! | magic (APR2 or APR\0) | compression (u8) | unpacked length (u32) | the compressed JSON container |
//! ```
//!
//! Before an LZ4 block, the unpacked length is repeated.

use crate::codec::Codec;
#[cfg(feature = "v1")]
use crate::{
    codec::MAX_UNPACKED,
    error::{Part, Result, Rule},
    mapping::Mapping,
    source::{Source, read_vec},
};

/// Where the wrapped file starts.
#[cfg(feature = "v1")]
const START: u64 = 9;
/// Where the unpacked length is.
#[cfg(feature = "v1")]
const LENGTH: u64 = 5;
/// Magic of a zstd frame.
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// The nine bytes before the wrapped file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrapper {
    /// `APR2` or `APR\0`.
    pub magic: [u8; 4],
    /// The compression of the wrapped file.
    pub codec: Codec,
    /// Size of the wrapped file in bytes, decompressed.
    pub unpacked: u32,
}

impl Wrapper {
    /// Parse the first bytes of a file; `None` if they are not those of a wrapper.
    ///
    /// The magic and a small number are weak evidence, so the start of the wrapped file must also fit its compression.
    #[must_use]
    pub fn parse(prefix: &[u8]) -> Option<Self> {
        let magic = *prefix.first_chunk()?;
        let length = *prefix.get(5..)?.first_chunk()?;
        let body = prefix.get(9..13)?;
        let codec = match prefix.get(4)? {
            0 if body == b"APR1" => Codec::Plain,
            1 if body == length => Codec::Lz4,
            2 if body == ZSTD => Codec::Zstd,
            _ => return None,
        };
        Some(Self { magic, codec, unpacked: u32::from_le_bytes(length) })
    }

    /// Decompress the wrapped file into memory.
    ///
    /// # Errors
    /// [`Rule::Malformed`] for a length above the limit; [`Rule::Compressed`] for invalid data; [`Rule::Io`].
    #[cfg(feature = "v1")]
    pub fn unpack(&self, source: &(impl Source + ?Sized), size: u64) -> Result<Mapping> {
        let length = u64::from(self.unpacked);
        if length > MAX_UNPACKED {
            let what = format!("unpacked length {length} is above the limit of 1 GiB");
            return Err(Rule::Malformed { what }.at(Part::Header, LENGTH));
        }
        let start = if self.codec == Codec::Lz4 { START + 4 } else { START };
        let packed = read_vec(source, start, size.saturating_sub(start))?;
        let length = usize::try_from(length).unwrap_or(usize::MAX); // at most 1 GiB
        self.codec.check(&packed, length, start)?;
        Mapping::filled(length, |out| self.codec.unpack(&packed, out, start))
    }
}
