//! Check that any bytes open, with every rule of the format kept, or give an error of one line.
#![no_main]

use apr_format_fuzz::{check, on_this_thread, sign};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: on_this_thread(), |bytes: &[u8]| {
    check(bytes);
    // Few mutations keep the checksums correct, so the bytes are checked with correct ones as well.
    let mut signed = bytes.to_vec();
    sign(&mut signed);
    check(&signed);
});
