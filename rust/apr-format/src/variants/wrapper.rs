//! The wrapper around a whole `APR1` file:
//!
//! ```text
//! | magic (APR2 or APR\0) | compression (u8) | unpacked length (u32) | the APR1 file in that compression |
//! ```
//!
//! An LZ4 block repeats the unpacked length before it.

use crate::{
    codec::{Codec, MAX_UNPACKED},
    error::{Part, Result, Rule},
    mapping::Mapping,
    source::{Source, read_vec},
};

/// Where what is wrapped begins.
const START: u64 = 9;
/// Where the unpacked length stands.
const LENGTH: u64 = 5;
/// Magic of a zstd frame.
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// The nine bytes before what is wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrapper {
    /// `APR2` or `APR\0`.
    pub magic: [u8; 4],
    /// How the file within is compressed.
    pub codec: Codec,
    /// Bytes of the file within.
    pub unpacked: u32,
}

impl Wrapper {
    /// From a file's first bytes; None where they are no wrapper's.
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

    /// Unpack the file within into memory.
    ///
    /// # Errors
    /// [`Rule::Malformed`] for a length above the limit, [`Rule::Compressed`]; the operating system's.
    pub fn unpack(&self, source: &(impl Source + ?Sized), size: u64) -> Result<Mapping> {
        let length = u64::from(self.unpacked);
        if length > MAX_UNPACKED {
            let what = format!("unpacked length {length} is above the limit of 1 GiB");
            return Err(Rule::Malformed { what }.at(Part::Header, LENGTH));
        }
        let start = if self.codec == Codec::Lz4 { START + 4 } else { START };
        let packed = read_vec(source, start, size.saturating_sub(start))?;
        let length = usize::try_from(length).unwrap_or(usize::MAX); // below the limit
        self.codec.check(&packed, length, start)?;
        Mapping::filled(length, |out| self.codec.unpack(&packed, out, start))
    }
}
