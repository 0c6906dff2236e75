//! Compute a CRC32 (the IEEE polynomial, as in zlib) in parallel.

use std::io;

use crate::{source::Source, threads};

/// Bytes that one task hashes, enough to make combining two results cheap in comparison.
const SEGMENT: u64 = 8 << 20;
/// Bytes that are read at a time, so that hashing finds them in the cache of the core. Above 128 KiB, a read took up to
/// seven times as long.
const WINDOW: usize = 64 << 10;

/// Return the CRC32 of the first `size` bytes of a source.
///
/// # Errors
/// Those of the operating system; `UnexpectedEof` if the source is shorter.
pub fn crc32(source: &(impl Source + ?Sized), size: u64) -> io::Result<u32> {
    let starts = (0..size.div_ceil(SEGMENT)).map(|segment| segment * SEGMENT);
    let segments =
        threads::try_map(starts.collect(), |start| hash(source, start, size.min(start + SEGMENT)))?;
    let mut whole = crc32fast::Hasher::new();
    for segment in &segments {
        whole.combine(segment);
    }
    Ok(whole.finalize())
}

fn hash(source: &(impl Source + ?Sized), start: u64, end: u64) -> io::Result<crc32fast::Hasher> {
    let mut hasher = crc32fast::Hasher::new();
    let mut window = vec![0; WINDOW];
    let mut at = start;
    while at < end {
        let size = usize::try_from(end - at).map_or(WINDOW, |rest| rest.min(WINDOW));
        let bytes = &mut window[..size];
        source.read_at(at, bytes)?;
        hasher.update(bytes);
        at += size as u64;
    }
    Ok(hasher)
}
