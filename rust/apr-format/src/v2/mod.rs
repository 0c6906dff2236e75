//! APR v2, the current container:
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

/// Every offset of data is a multiple of this.
pub const ALIGN: u64 = 64;

/// The next multiple of 64; None on overflow.
#[must_use]
pub fn align(value: u64) -> Option<u64> {
    value.checked_next_multiple_of(ALIGN)
}
