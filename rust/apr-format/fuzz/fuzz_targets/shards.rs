//! Compare the scan of a shard of arbitrary bytes with a plain loop over the ids.
#![no_main]

use std::{collections::HashMap, io};

use apr_format::internal::shards::scan::{ScanOptions, scan_source};
use apr_format_fuzz::on_this_thread;
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    limit: u32,
    hash: bool,
    /// Chooses the bits of an id: up to 11, or 14 for a value above 250. The table for the 22 bits of the largest
    /// vocabulary would take milliseconds per input.
    bits: u8,
    torn: u8,
    /// Above 250, the ids are repeated until the shard is longer than one read of the scan.
    repeat: u8,
    ids: &'a [u8],
}

fuzz_target!(init: on_this_thread(), |input: Input| {
    let mask = (1 << if input.bits > 250 { 14 } else { input.bits % 12 }) - 1;
    let once: Vec<_> = input.ids.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id) & mask).collect();
    let ids = once.repeat(usize::from(input.repeat.saturating_sub(250)) * 8 + 1);
    let mut bytes: Vec<_> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    bytes.resize(bytes.len() + usize::from(input.torn % 4), 0);
    let options = ScanOptions { limit: input.limit, hash: input.hash };
    let (scan, totals) = match scan_source(bytes.as_slice(), options) {
        Ok(result) => result,
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(!bytes.len().is_multiple_of(4));
            return;
        }
    };
    let limit = input.limit.min(1 << 22);
    assert_eq!(scan.tokens, ids.len() as u64);
    assert_eq!(scan.max_id, ids.iter().copied().max());
    assert_eq!(scan.sha256.is_some(), input.hash);
    let beyond = ids.iter().position(|&id| id >= limit);
    assert_eq!(scan.first_out_of_range, beyond.map(|at| (at as u64, ids[at])));
    let mut counts: HashMap<usize, u64> = HashMap::new();
    for id in ids.iter().filter(|&&id| id < limit) {
        *counts.entry(*id as usize).or_default() += 1;
    }
    assert_eq!(totals.counts.len(), counts.keys().max().map_or(0, |most| most + 1));
    assert_eq!(totals.counts.iter().sum::<u64>(), counts.values().sum::<u64>());
    assert!(counts.iter().all(|(&id, &count)| totals.counts[id] == count));
});
