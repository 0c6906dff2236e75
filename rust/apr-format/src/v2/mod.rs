//! Version 2, the current form of the format:
//!
//! ```text
//! | header (64 B) | JSON metadata | pad | tensor index | pad | tensors, each padded to 64 | CRC32 |
//! ```

pub mod header;
pub mod index;
pub mod layout;
pub mod read;
pub mod stamp;
pub mod stream;
pub mod write;

/// Every tensor starts at a multiple of this, so that its mapped bytes are aligned for every dtype and for SIMD.
pub const ALIGN: u64 = 64;

/// Round up to a multiple of 64; `None` on overflow.
#[must_use]
pub fn align(value: u64) -> Option<u64> {
    value.checked_next_multiple_of(ALIGN)
}
