//! Check that arbitrary bytes either open as a valid file or give an error of one line.
#![no_main]

use apr_format_fuzz::{check, on_this_thread, sign};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: on_this_thread(), |bytes: &[u8]| {
    check(bytes);
    // Most mutations break a checksum, which would hide the other checks. So correct the checksums and check again.
    let mut signed = bytes.to_vec();
    sign(&mut signed);
    check(&signed);
});
