//! The JSON container and its wrappers: older forms that are read and never written.

pub mod json;
pub mod wrapper;
