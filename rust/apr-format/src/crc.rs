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

/// The checksums of a source that is divided into parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksums {
    /// CRC32 of each part.
    pub parts: Vec<u32>,
    /// CRC32 of the bytes outside all parts, in their order.
    pub rest: u32,
    /// CRC32 of the whole.
    pub whole: u32,
}

/// Return the CRC32 of each part of a source, of the bytes outside the parts, and of the first `size` bytes, in one
/// pass. A part is its first byte and its size.
///
/// # Errors
/// Those of the operating system; `UnexpectedEof` if the source is shorter; `InvalidInput` if the parts are not in
/// order, overlap, or end after `size`.
pub fn crc32_parts(
    source: &(impl Source + ?Sized),
    parts: &[(u64, u64)],
    size: u64,
) -> io::Result<Checksums> {
    let mut spans = Vec::new();
    let mut at = 0;
    for (index, &(start, part)) in parts.iter().enumerate() {
        let end = start.checked_add(part).filter(|end| at <= start && *end <= size);
        let end = end.ok_or(io::ErrorKind::InvalidInput)?;
        push_segments(&mut spans, None, at, start);
        push_segments(&mut spans, Some(index), start, end);
        at = end;
    }
    push_segments(&mut spans, None, at, size);
    let hashed = threads::try_map(spans, |(index, start, end)| {
        hash(source, start, end).map(|hasher| (index, hasher))
    })?;
    let mut of_parts = vec![crc32fast::Hasher::new(); parts.len()];
    let (mut rest, mut whole) = (crc32fast::Hasher::new(), crc32fast::Hasher::new());
    for (index, hasher) in &hashed {
        index.and_then(|index| of_parts.get_mut(index)).unwrap_or(&mut rest).combine(hasher);
        whole.combine(hasher);
    }
    Ok(Checksums {
        parts: of_parts.into_iter().map(crc32fast::Hasher::finalize).collect(),
        rest: rest.finalize(),
        whole: whole.finalize(),
    })
}

/// Add the bytes from `start` to `end`, in segments for one task each.
fn push_segments(spans: &mut Vec<(Option<usize>, u64, u64)>, part: Option<usize>, start: u64, end: u64) {
    let mut at = start;
    while at < end {
        let next = end.min(at.saturating_add(SEGMENT));
        spans.push((part, at, next));
        at = next;
    }
}

fn hash(source: &(impl Source + ?Sized), start: u64, end: u64) -> io::Result<crc32fast::Hasher> {
    let mut hasher = crc32fast::Hasher::new();
    let window_size = |rest: u64| usize::try_from(rest).map_or(WINDOW, |rest| rest.min(WINDOW));
    let mut window = vec![0; window_size(end - start)];
    let mut at = start;
    while at < end {
        let size = window_size(end - at);
        let bytes = &mut window[..size];
        source.read_at(at, bytes)?;
        hasher.update(bytes);
        at += size as u64;
    }
    Ok(hasher)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(size: usize) -> Vec<u8> {
        (0..size).map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[1]).collect()
    }

    #[test]
    fn each_part_the_rest_and_the_whole_have_the_checksum_of_their_bytes() {
        let segment = usize::try_from(SEGMENT).unwrap();
        let data = bytes(2 * segment + 1000);
        let ranges = [3..3, 3..40, 40..41, 500..segment + 777, segment + 777..data.len() - 9];
        let parts: Vec<_> = ranges.iter().map(|range| (range.start as u64, range.len() as u64)).collect();
        let found = crc32_parts(data.as_slice(), &parts, data.len() as u64).unwrap();
        let expected: Vec<_> = ranges.iter().map(|range| crc32fast::hash(&data[range.clone()])).collect();
        assert_eq!(found.parts, expected);
        let rest = [&data[..3], &data[41..500], &data[data.len() - 9..]].concat();
        assert_eq!(found.rest, crc32fast::hash(&rest));
        assert_eq!(found.whole, crc32fast::hash(&data));
        assert_eq!(found.whole, crc32(data.as_slice(), data.len() as u64).unwrap());
    }

    #[test]
    fn parts_that_overlap_or_end_late_are_refused() {
        let data = bytes(100);
        let kind = |parts: &[(u64, u64)]| crc32_parts(data.as_slice(), parts, 100).unwrap_err().kind();
        for parts in [[(10, 10), (19, 5)], [(50, 1), (10, 1)], [(0, 1), (90, 11)], [(0, 1), (9, u64::MAX)]] {
            assert_eq!(kind(&parts), io::ErrorKind::InvalidInput);
        }
        let cut = crc32_parts(data.as_slice(), &[(0, 101)], 101).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    }
}
