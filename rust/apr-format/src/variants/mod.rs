//! Older forms of `.apr` files, which are read and never written.

pub mod json;
pub mod wrapper;
