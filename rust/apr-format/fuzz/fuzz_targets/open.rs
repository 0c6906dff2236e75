//! Any bytes open or give an error of one line; what opens keeps the format's promises.
#![no_main]

use apr_format_fuzz::{look, on_this_thread, sign};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: on_this_thread(), |bytes: &[u8]| {
    look(bytes);
    // Few mutations keep the checksums right: look behind them as well.
    let mut signed = bytes.to_vec();
    sign(&mut signed);
    look(&signed);
});
