//! Token shards: flat streams of little-endian u32 ids.

pub mod scan;
