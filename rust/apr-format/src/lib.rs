//! The `.apr` model container and the token shards that go with it: open, check, write.
#![deny(unsafe_code)]

pub mod atomic;
pub mod codec;
pub mod container;
pub mod contents;
pub mod crc;
pub mod dtype;
pub mod error;
pub mod file;
pub mod index;
pub mod json;
pub mod keys;
pub mod mapping;
pub mod quant;
pub mod shards;
pub mod sniff;
pub mod source;
pub mod threads;
#[cfg(feature = "v1")]
pub mod v1;
pub mod v2;
pub mod variants;
pub mod verify;
pub mod watch;

pub use error::{At, Error, Kind, Part, Result, Rule};
