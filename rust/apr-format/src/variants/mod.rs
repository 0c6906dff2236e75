//! Older forms of `.apr` files, which are read, or shown, and never written.

pub mod json;
pub mod whisper;
pub mod wrapper;
