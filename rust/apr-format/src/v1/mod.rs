//! APR v1 (magic `APRN`), which is read and never written:
//!
//! ```text
//! | header (32 B) | metadata | payload | signature 64, public key 32 (if SIGNED) | CRC32 |
//! ```
//!
//! The payload is one value of the model's own type; `tensor_shapes` in the metadata may describe it as
//! tensors. If ENCRYPTED, it is compressed first, then encrypted.

pub mod header;
pub mod keys;
pub mod metadata;
pub mod read;
mod seal;
pub mod tensors;
pub mod verify;
