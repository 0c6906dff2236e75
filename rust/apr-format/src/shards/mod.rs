//! Token shards: flat streams of little-endian u32 ids.

pub mod order;
pub mod scan;
pub mod stream;
