//! Token shards: flat streams of little-endian u32 ids.

mod advice;
mod histogram;
pub mod order;
mod repeats;
pub mod scan;
pub mod stream;
