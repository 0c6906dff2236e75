//! The JSON container and its compressed wrappers, which are read but not written.

pub mod json;
pub mod wrapper;
