//! One pass over shards: how often each id occurs, the highest id, the first id out of range, repeated text,
//! SHA-256.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

pub use super::histogram::MAX_VOCAB;
use super::{advice, histogram::Histogram, repeats::Repeats};
use crate::{
    error::{Error, Part, Rule},
    source::Source,
    threads,
    watch::Watch,
};

/// Bytes read at a time: 64 KiB stay in the core's own cache while they are counted and hashed. Repeated text
/// is looked for within a piece, so the result does not depend on where a thread's part of a shard begins.
const PIECE: usize = 64 << 10;
/// Bytes counted by one task when the shard is not hashed; a multiple of [`PIECE`]. Small enough that no
/// thread works for long after the others have run out of work.
const SEGMENT: u64 = 4 << 20;

/// The result of scanning one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardScan {
    /// Number of ids.
    pub tokens: u64,
    /// Time of the last change, in nanoseconds since 1970; 0 if the shard is not a file.
    pub modified_ns: i64,
    /// The highest id; `None` for an empty shard.
    pub max_id: Option<u32>,
    /// Index within the shard and value of the first id at or above the limit.
    pub first_out_of_range: Option<(u64, u32)>,
    /// SHA-256 of the file; `None` unless it was requested.
    pub sha256: Option<[u8; 32]>,
}

/// The result of scanning all shards together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// How often each id below the limit occurs, up to the highest such id.
    pub counts: Vec<u64>,
    /// Number of sampled windows of 64 ids, about one for every 300 ids.
    pub windows: u64,
    /// Estimated number of distinct sampled windows, within a few percent.
    pub different_windows: u64,
}

/// Options of a scan.
#[derive(Clone, Copy, Debug)]
pub struct ScanOptions {
    /// Ids at or above this are out of range; at most [`MAX_VOCAB`] are counted.
    pub limit: u32,
    /// Whether to hash each shard. One thread then reads a shard from its start to its end.
    pub hash: bool,
}

/// Scan shards in parallel. Each is given with the number of ids that it should have.
///
/// # Errors
/// The first error in shard order, with the index of the shard: the operating system's; [`Rule::CutShort`] if
/// the shard is shorter than it should be, [`Rule::Grown`] if it is longer.
pub fn scan_all<P: AsRef<Path> + Sync>(
    shards: &[(P, u64)],
    options: ScanOptions,
    watch: &Watch,
) -> Result<(Vec<ShardScan>, Totals), (usize, Error)> {
    let scanner = Scanner { options, watch, idle: Mutex::default() };
    let scans: Vec<_> = threads::run(|| {
        let scan = |(path, tokens): &(P, u64)| scanner.file(path.as_ref(), *tokens);
        shards.par_iter().with_max_len(1).map(scan).collect()
    });
    let scans =
        (0..).zip(scans).map(|(i, scan)| scan.map_err(|error| (i, error))).collect::<Result<_, _>>()?;
    Ok((scans, scanner.totals()))
}

/// Scan bytes from any source.
///
/// # Errors
/// The operating system's; `InvalidData` if the size is not a multiple of 4.
pub fn scan_source(shard: &(impl Source + ?Sized), options: ScanOptions) -> io::Result<(ShardScan, Totals)> {
    let size = shard.size()?;
    if !size.is_multiple_of(4) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the size is not a multiple of 4 bytes"));
    }
    let scanner = Scanner { options, watch: &Watch::default(), idle: Mutex::default() };
    let scan = threads::run(|| scanner.source(shard, size))?;
    Ok((scan, scanner.totals()))
}

struct Scanner<'a> {
    options: ScanOptions,
    watch: &'a Watch,
    /// Counters that no task uses now. A task takes one or starts one, so there are as many as threads, and
    /// adding an id takes no lock.
    idle: Mutex<Vec<Counters>>,
}

#[derive(Default)]
struct Counters {
    ids: Histogram,
    repeats: Repeats,
}

impl Scanner<'_> {
    fn file(&self, path: &Path, tokens: u64) -> Result<ShardScan, Error> {
        let size = tokens.saturating_mul(4);
        let file = File::open(path)?;
        advice::sequential(&file);
        let metadata = file.metadata()?;
        if metadata.len() > size {
            return Err(Rule::Grown { have: metadata.len() }.at(Part::Data, size));
        }
        let scan = self.source(&file, size).map_err(|error| match (error.kind(), file.metadata()) {
            (io::ErrorKind::UnexpectedEof, Ok(now)) => Error::cut_short(size, now.len()),
            _ => error.into(),
        })?;
        let seconds = metadata.mtime().saturating_mul(1_000_000_000);
        Ok(ShardScan { modified_ns: seconds.saturating_add(metadata.mtime_nsec()), ..scan })
    }

    fn source(&self, shard: &(impl Source + ?Sized), size: u64) -> io::Result<ShardScan> {
        if self.options.hash || size <= SEGMENT {
            return self.part(shard, 0, size);
        }
        (0..size.div_ceil(SEGMENT))
            .into_par_iter()
            .map(|segment| self.part(shard, segment * SEGMENT, size.min((segment + 1) * SEGMENT)))
            .try_reduce(ShardScan::default, |a, b| Ok(a.followed_by(b)))
    }

    /// Scan the ids from byte `start` to byte `end`, both multiples of 4.
    fn part(&self, shard: &(impl Source + ?Sized), start: u64, end: u64) -> io::Result<ShardScan> {
        let mut counters = self.idle().pop().unwrap_or_default();
        let mut sha256 = self.options.hash.then(Sha256::new);
        let mut scan = ShardScan { tokens: (end - start) / 4, ..ShardScan::default() };
        let mut piece = Vec::new();
        for offset in (start..end).step_by(PIECE) {
            read_piece(shard, offset, end, &mut piece)?;
            self.watch.advance(piece.len())?;
            if let Some(sha256) = &mut sha256 {
                sha256.update(&piece);
            }
            let ids = piece.as_chunks().0;
            counters.repeats.add(ids);
            scan.max_id = counters.ids.add(ids, scan.max_id);
        }
        self.idle().push(counters);
        scan.sha256 = sha256.map(|sha256| sha256.finalize().into());
        let limit = self.options.limit.min(MAX_VOCAB);
        if scan.max_id >= Some(limit) {
            // Rare, so a second pass looks for the first such id instead of every pass.
            scan.first_out_of_range = first_at_or_above(limit, shard, start, end)?;
        }
        Ok(scan)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Counters>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn totals(self) -> Totals {
        let counters = self.idle.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (ids, repeats): (Vec<_>, Vec<_>) = counters.into_iter().map(|one| (one.ids, one.repeats)).unzip();
        let (windows, different_windows) = Repeats::merged(repeats);
        Totals { counts: Histogram::merged(ids, self.options.limit), windows, different_windows }
    }
}

/// Return the index, counted from byte `start`, and the value of the first id at or above `limit`.
fn first_at_or_above(
    limit: u32,
    shard: &(impl Source + ?Sized),
    start: u64,
    end: u64,
) -> io::Result<Option<(u64, u32)>> {
    let mut piece = Vec::new();
    for offset in (start..end).step_by(PIECE) {
        read_piece(shard, offset, end, &mut piece)?;
        let ids = piece.as_chunks().0.iter().map(|id| u32::from_le_bytes(*id));
        let out_of_range = ((offset - start) / 4..).zip(ids).find(|&(_, id)| id >= limit);
        if out_of_range.is_some() {
            return Ok(out_of_range);
        }
    }
    Ok(None)
}

/// Read a piece at `offset`, up to byte `end`.
fn read_piece(shard: &(impl Source + ?Sized), offset: u64, end: u64, piece: &mut Vec<u8>) -> io::Result<()> {
    piece.resize(usize::try_from(end - offset).map_or(PIECE, |left| left.min(PIECE)), 0);
    shard.read_at(offset, piece)
}

impl ShardScan {
    /// Return the scan of this part of a shard and the next part together.
    fn followed_by(mut self, next: Self) -> Self {
        let shifted = next.first_out_of_range.map(|(index, id)| (self.tokens + index, id));
        self.first_out_of_range = self.first_out_of_range.or(shifted);
        self.tokens += next.tokens;
        self.max_id = self.max_id.max(next.max_id);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [bool; 2] = [true, false];

    fn bytes(ids: &[u32]) -> Vec<u8> {
        ids.iter().flat_map(|id| id.to_le_bytes()).collect()
    }

    fn scan(ids: &[u32], options: ScanOptions) -> (ShardScan, Totals) {
        scan_source(bytes(ids).as_slice(), options).unwrap()
    }

    #[test]
    fn counts_every_id_and_finds_the_first_out_of_range() {
        for hash in BOTH {
            let (scanned, totals) = scan(&[3, 1, 3, 9, 7], ScanOptions { limit: 7, hash });
            assert_eq!(scanned.tokens, 5);
            assert_eq!(scanned.max_id, Some(9));
            assert_eq!(scanned.first_out_of_range, Some((3, 9)));
            assert_eq!(totals.counts, [0, 1, 0, 2]);
            let expected: [u8; 32] = Sha256::digest(bytes(&[3, 1, 3, 9, 7])).into();
            assert_eq!(scanned.sha256, hash.then_some(expected));
        }
    }

    #[test]
    fn an_index_is_counted_from_the_start_of_the_shard() {
        let segment = usize::try_from(SEGMENT / 4).unwrap();
        for at in [PIECE / 4 + 2, segment, segment + PIECE / 4 + 1] {
            let mut ids = vec![0; segment + PIECE];
            ids[at] = u32::MAX;
            for hash in BOTH {
                let (scanned, totals) = scan(&ids, ScanOptions { limit: u32::MAX, hash });
                assert_eq!(scanned.first_out_of_range, Some((at as u64, u32::MAX)));
                assert_eq!(scanned.max_id, Some(u32::MAX));
                assert_eq!(totals.counts, [ids.len() as u64 - 1]);
                assert_eq!(scanned.tokens, ids.len() as u64);
            }
        }
    }

    #[test]
    fn an_empty_shard_has_no_highest_id() {
        for hash in BOTH {
            let (scanned, totals) = scan(&[], ScanOptions { limit: 9, hash });
            assert_eq!((scanned.tokens, scanned.max_id, totals.counts.len()), (0, None, 0));
        }
    }

    #[test]
    fn totals_are_the_same_with_and_without_hashes() {
        let directory = tempfile::tempdir().unwrap();
        let ids: Vec<u32> = (0..9_000_000_u32).map(|i| i.wrapping_mul(2_654_435_761) >> 16).collect();
        let shards: Vec<_> = ids
            .chunks(5_000_000)
            .enumerate()
            .map(|(i, part)| {
                let path = directory.path().join(i.to_string());
                std::fs::write(&path, bytes(part)).unwrap();
                (path, part.len() as u64)
            })
            .collect();
        let [hashed, plain] = BOTH.map(|hash| {
            scan_all(&shards, ScanOptions { limit: MAX_VOCAB, hash }, &Watch::default()).unwrap()
        });
        assert_eq!(hashed.1, plain.1);
        assert!(hashed.1.windows > 10_000);
        for (mut hashed, plain) in hashed.0.into_iter().zip(plain.0) {
            assert!(hashed.modified_ns > 0);
            assert!(hashed.sha256.take().is_some());
            assert_eq!(hashed, plain);
        }
    }

    #[test]
    fn a_shard_of_another_size_is_an_error_with_its_index() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0");
        std::fs::write(&path, bytes(&[1, 2, 3])).unwrap();
        let options = ScanOptions { limit: 10, hash: true };
        let with = |tokens| scan_all(&[(&path, 3), (&path, tokens)], options, &Watch::default());
        assert!(with(3).is_ok());
        let (shard, error) = with(4).unwrap_err();
        assert!(matches!(error.rule, Rule::CutShort { need: 16 }));
        assert_eq!((shard, error.offset()), (1, Some(12)));
        let (shard, error) = with(2).unwrap_err();
        assert!(matches!(error.rule, Rule::Grown { have: 12 }));
        assert_eq!((shard, error.offset()), (1, Some(8)));
    }

    #[test]
    fn a_stopped_scan_ends_after_one_piece() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0");
        std::fs::write(&path, bytes(&vec![7; 100_000])).unwrap();
        let watch = Watch::default();
        watch.stop();
        let stopped = scan_all(&[(&path, 100_000)], ScanOptions { limit: 10, hash: false }, &watch);
        let (shard, Error { rule: Rule::Io(error), .. }) = stopped.unwrap_err() else {
            panic!("not stopped")
        };
        assert_eq!((shard, error.kind()), (0, io::ErrorKind::Interrupted));
        assert_eq!(watch.bytes(), PIECE as u64);
    }
}
