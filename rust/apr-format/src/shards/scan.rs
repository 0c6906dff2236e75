//! One pass over shards: how often each id occurs, the highest, the first that is too high, SHA-256.

use std::{fs::File, io, path::Path};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{source::Source, threads};

/// Bytes read at a time: they are counted and hashed while they still lie in the core's own cache.
const WINDOW: usize = 128 << 10;
/// Bytes that one task counts where nothing has to be hashed in order; a multiple of [`WINDOW`].
const SEGMENT: u64 = 16 << 20;
/// No vocabulary is larger; ids from here on are found like ids beyond the vocabulary, never counted.
pub const MAX_VOCAB: u32 = 1 << 22;

/// What one shard holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardScan {
    /// Ids in the shard.
    pub tokens: u64,
    /// The highest id; `None` for an empty shard.
    pub max_id: Option<u32>,
    /// Index within the shard and value of the first id at or above the limit.
    pub first_beyond: Option<(u64, u32)>,
    /// SHA-256 of the file, where it was asked for.
    pub sha256: Option<[u8; 32]>,
    /// How often each id below the limit occurs; as long as the highest such id asks for.
    pub counts: Vec<u64>,
}

/// What to look for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Ids from here on are out of range; at most [`MAX_VOCAB`] counts.
    pub limit: u32,
    /// Whether to hash: the bytes of a shard then have to go through one thread.
    pub hash: bool,
}

/// Scan one shard.
///
/// # Errors
/// The operating system's; `InvalidData` when the size is no multiple of 4, `UnexpectedEof` when the shard
/// becomes shorter meanwhile.
pub fn scan(path: &Path, wanted: Wanted) -> io::Result<ShardScan> {
    scan_source(&File::open(path)?, wanted)
}

/// As [`scan`], of bytes from anywhere.
///
/// # Errors
/// As [`scan`].
pub fn scan_source(shard: &(impl Source + ?Sized), wanted: Wanted) -> io::Result<ShardScan> {
    let size = shard.size()?;
    if !size.is_multiple_of(4) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "size is no multiple of 4 bytes"));
    }
    if wanted.hash || size <= SEGMENT {
        return part(shard, 0, size, wanted);
    }
    threads::run(|| {
        (0..size.div_ceil(SEGMENT))
            .into_par_iter()
            .map(|segment| {
                let start = segment * SEGMENT;
                part(shard, start, size.min(start + SEGMENT), wanted)
            })
            .try_reduce(ShardScan::default, |a, b| Ok(a.followed_by(b)))
    })
}

/// Scan shards in parallel, in the given order; the first error in that order wins.
///
/// # Errors
/// As [`scan`], with the index of the shard.
pub fn scan_all<P: AsRef<Path> + Sync>(
    paths: &[P],
    wanted: Wanted,
) -> Result<Vec<ShardScan>, (usize, io::Error)> {
    let scans: Vec<_> = threads::run(|| paths.par_iter().map(|path| scan(path.as_ref(), wanted)).collect());
    scans.into_iter().enumerate().map(|(i, scan)| scan.map_err(|error| (i, error))).collect()
}

/// The ids from byte `start` to byte `end`, both multiples of 4.
fn part(shard: &(impl Source + ?Sized), start: u64, end: u64, wanted: Wanted) -> io::Result<ShardScan> {
    let limit = wanted.limit.min(MAX_VOCAB);
    let mut hasher = Sha256::new();
    let mut found = ShardScan { tokens: (end - start) / 4, ..ShardScan::default() };
    let mut table = Table::default();
    let mut window = vec![0; WINDOW];
    let mut at = start;
    while at < end {
        let size = usize::try_from(end - at).map_or(WINDOW, |rest| rest.min(WINDOW));
        let bytes = &mut window[..size];
        shard.read_at(at, bytes)?;
        if wanted.hash {
            hasher.update(&*bytes);
        }
        let ids = bytes.as_chunks::<4>().0;
        if !table.count(ids) {
            found.max_id = found.max_id.max(ids.iter().map(|id| u32::from_le_bytes(*id)).max());
        }
        at += size as u64;
        if at.is_multiple_of(SEGMENT) {
            table.empty_into(&mut found.counts);
        }
    }
    table.empty_into(&mut found.counts);
    trim(&mut found.counts);
    let highest = u32::try_from(found.counts.len()).ok().and_then(|used| used.checked_sub(1));
    found.max_id = found.max_id.max(highest);
    if found.max_id >= Some(limit) {
        // Rare enough to look for the first one in a pass of its own.
        found.first_beyond = first_beyond(shard, start, end, limit)?;
        found.counts.truncate(limit as usize);
        trim(&mut found.counts);
    }
    found.sha256 = wanted.hash.then(|| hasher.finalize().into());
    Ok(found)
}

fn trim(counts: &mut Vec<u64>) {
    counts.truncate(counts.iter().rposition(|&count| count > 0).map_or(0, |last| last + 1));
}

/// Index from `start` on and value of the first id at or above the limit.
fn first_beyond(
    shard: &(impl Source + ?Sized),
    start: u64,
    end: u64,
    limit: u32,
) -> io::Result<Option<(u64, u32)>> {
    let mut window = vec![0; WINDOW];
    for at in (start..end).step_by(WINDOW) {
        let size = usize::try_from(end - at).map_or(WINDOW, |rest| rest.min(WINDOW));
        let bytes = &mut window[..size];
        shard.read_at(at, bytes)?;
        let ids = bytes.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id));
        let found = ((at - start) / 4..).zip(ids).find(|&(_, id)| id >= limit);
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Counts of ids. Its length is a power of two above every id it has met, so that no id needs a check of its
/// own; 32 bits suffice between two emptyings and take half the cache.
#[derive(Default)]
struct Table(Vec<u32>);

impl Table {
    /// Count ids; false where one of them is none of a vocabulary, and such ids are left out.
    fn count(&mut self, ids: &[[u8; 4]]) -> bool {
        // Every id is below the power of two above this.
        let all = ids.iter().fold(0, |all, id| all | u32::from_le_bytes(*id));
        let length = (all.min(MAX_VOCAB - 1) as usize + 1).next_power_of_two();
        if length > self.0.len() {
            self.0.resize(length.max(1 << 10), 0);
        }
        macro_rules! masked {
            ($($bits:literal)*) => {
                match self.0.len() {
                    $(length if length == 1 << $bits => masked::<{ 1 << $bits }>(&mut self.0, ids),)*
                    _ => {}
                }
            };
        }
        if all < MAX_VOCAB {
            masked!(10 11 12 13 14 15 16 17 18 19 20 21 22);
            return true;
        }
        for id in ids {
            if let Some(count) = self.0.get_mut(u32::from_le_bytes(*id) as usize) {
                *count += 1;
            }
        }
        false
    }

    fn empty_into(&mut self, counts: &mut Vec<u64>) {
        counts.resize(counts.len().max(self.0.len()), 0);
        for (sum, count) in counts.iter_mut().zip(&mut self.0) {
            *sum += u64::from(std::mem::take(count));
        }
    }
}

/// The loop that everything waits for: masked by a constant, it has no bounds to check.
fn masked<const N: usize>(counts: &mut [u32], ids: &[[u8; 4]]) {
    let Some((counts, _)) = counts.split_first_chunk_mut::<N>() else { return };
    for id in ids {
        counts[u32::from_le_bytes(*id) as usize & (N - 1)] += 1;
    }
}

impl ShardScan {
    /// This part and the next of a shard as one.
    fn followed_by(mut self, next: Self) -> Self {
        let shifted = next.first_beyond.map(|(index, id)| (self.tokens + index, id));
        self.first_beyond = self.first_beyond.or(shifted);
        self.tokens += next.tokens;
        self.max_id = self.max_id.max(next.max_id);
        self.counts.resize(self.counts.len().max(next.counts.len()), 0);
        for (sum, count) in self.counts.iter_mut().zip(next.counts) {
            *sum += count;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const BOTH: [bool; 2] = [true, false];

    fn shard(ids: &[u32]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        file.write_all(&bytes).unwrap();
        file.flush().unwrap();
        file
    }

    #[test]
    fn counts_every_id_and_finds_the_first_beyond() {
        let file = shard(&[3, 1, 3, 9, 7]);
        for hash in BOTH {
            let found = scan(file.path(), Wanted { limit: 7, hash }).unwrap();
            assert_eq!(found.tokens, 5);
            assert_eq!(found.max_id, Some(9));
            assert_eq!(found.first_beyond, Some((3, 9)));
            assert_eq!(found.counts, [0, 1, 0, 2]);
            assert_eq!(found.sha256.is_some(), hash);
        }
    }

    #[test]
    fn an_index_counts_from_the_start_of_the_shard_in_later_windows_and_segments() {
        let segment = usize::try_from(SEGMENT / 4).unwrap();
        for at in [WINDOW / 4 + 2, segment, segment + WINDOW / 4 + 1] {
            let mut ids = vec![0; segment + WINDOW];
            ids[at] = u32::MAX;
            let file = shard(&ids);
            for hash in BOTH {
                let found = scan(file.path(), Wanted { limit: u32::MAX, hash }).unwrap();
                assert_eq!(found.first_beyond, Some((at as u64, u32::MAX)));
                assert_eq!(found.max_id, Some(u32::MAX));
                assert_eq!(found.counts, [ids.len() as u64 - 1]);
                assert_eq!(found.tokens, ids.len() as u64);
            }
        }
    }

    #[test]
    fn an_empty_shard_has_no_highest_id() {
        for hash in BOTH {
            let found = scan(shard(&[]).path(), Wanted { limit: 9, hash }).unwrap();
            assert_eq!((found.tokens, found.max_id, found.counts.len()), (0, None, 0));
        }
    }

    #[test]
    fn a_torn_id_is_an_error_that_names_the_shard() {
        let mut torn = shard(&[1, 2]);
        torn.write_all(&[0; 3]).unwrap();
        torn.flush().unwrap();
        let wanted = Wanted { limit: 10, hash: true };
        let (index, error) = scan_all(&[shard(&[1]).path(), torn.path()], wanted).unwrap_err();
        assert_eq!((index, error.kind()), (1, io::ErrorKind::InvalidData));
    }
}
