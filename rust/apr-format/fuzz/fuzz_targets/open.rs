//! Any bytes open or give an error; what opens can be verified and dequantised.
#![no_main]

use apr_format::{
    quant,
    v2::{header, read, verify},
};
use libfuzzer_sys::fuzz_target;

/// Values that one input may ask for: a q8 tensor of a gigabyte would only be slow.
const MOST: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    look(bytes);
    // Few mutations keep the header's checksum right: look behind it as well.
    if let Some(first) = bytes.first_chunk::<64>() {
        let mut signed = bytes.to_vec();
        signed[40..44].copy_from_slice(&header::checksum(first).to_le_bytes());
        look(&signed);
    }
});

fn look(bytes: &[u8]) {
    let findings = verify::verify(bytes).expect("memory has no I/O errors");
    let Ok(contents) = read::open(bytes) else {
        assert!(!findings.opened);
        return;
    };
    assert!(findings.opened);
    for tensor in contents.tensors.iter().filter(|tensor| tensor.dtype.is_quantised()) {
        let Ok(stored) = contents.stored(tensor) else { continue };
        if stored.dtype.is_quantised() && stored.count() <= MOST {
            let mut values = vec![0.0; usize::try_from(stored.count()).expect("at most 2^20")];
            quant::dequantise(bytes, stored, 0, &mut values).expect("its size was checked");
        }
    }
}
