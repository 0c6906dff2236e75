//! Version 1 of the format (magic `APRN`), which is read but not written:
//!
//! ```text
//! | header (32 B) | metadata | payload | signature 64, public key 32 (if SIGNED) | CRC32 |
//! ```
//!
//! The payload is one value of a type of the writer. `tensor_shapes` in the metadata may describe it as tensors. An
//! encrypted payload was compressed first, then encrypted.

pub mod header;
pub mod metadata;
pub mod read;
mod seal;
pub mod tensors;
pub mod verify;
