//! The `.apr` model container and the token shards that go with it: open, check, write.
#![deny(unsafe_code)]
