//! One pass over shards: how often each id occurs, the highest, the first that is too high, what repeats,
//! SHA-256.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

pub use super::histogram::MAX_VOCAB;
use super::{advice, histogram::Histogram, repeats::Repeats};
use crate::{Error, source::Source, threads};

/// Bytes read at a time: they are counted and hashed while they still lie in the core's own cache. Repeated
/// windows are looked for within such a piece, wherever a thread's part of a shard begins.
const PIECE: usize = 64 << 10;
/// Bytes that one task counts where nothing has to be hashed in order; a multiple of [`PIECE`].
const SEGMENT: u64 = 16 << 20;

/// What one shard holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardScan {
    /// Ids in the shard.
    pub tokens: u64,
    /// When it was last changed, in nanoseconds since 1970; 0 for what is no file.
    pub modified_ns: i64,
    /// The highest id; `None` for an empty shard.
    pub max_id: Option<u32>,
    /// Index within the shard and value of the first id at or above the limit.
    pub first_beyond: Option<(u64, u32)>,
    /// SHA-256 of the file, where it was asked for.
    pub sha256: Option<[u8; 32]>,
}

/// What all shards hold together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// How often each id below the limit occurs; as long as the highest such id asks for.
    pub counts: Vec<u64>,
    /// Windows of 64 ids, about one in 300 places.
    pub windows: u64,
    /// How many of them differ from one another; an estimate, within some percent.
    pub different_windows: u64,
}

/// What to look for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Ids from here on are out of range; at most [`MAX_VOCAB`] counts.
    pub limit: u32,
    /// Whether to hash: the bytes of a shard then have to go through one thread.
    pub hash: bool,
}

/// How far a scan is, for those who wait for it, and how they end it.
#[derive(Debug, Default)]
pub struct Watch {
    read: AtomicU64,
    stop: AtomicBool,
}

impl Watch {
    /// Ids read so far.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.read.load(Ordering::Relaxed) / 4
    }

    /// Make the scan end soon, with an error of kind `Interrupted`.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Scan shards in parallel, each given with the ids that it was listed with.
///
/// # Errors
/// With the index of the shard: the operating system's; [`Error::CutShort`] where one is shorter than it was
/// listed with, [`Error::Grown`] where it is longer. Of several, the first in the given order.
pub fn scan_all<P: AsRef<Path> + Sync>(
    shards: &[(P, u64)],
    wanted: Wanted,
    watch: &Watch,
) -> Result<(Vec<ShardScan>, Totals), (usize, Error)> {
    let work = Work { wanted, watch, spare: Mutex::default() };
    let scans: Vec<_> = threads::run(|| {
        shards.par_iter().map(|(path, tokens)| work.listed(path.as_ref(), tokens.saturating_mul(4))).collect()
    });
    let scans: Vec<_> = scans
        .into_iter()
        .enumerate()
        .map(|(i, scan)| scan.map_err(|error| (i, error)))
        .collect::<Result<_, _>>()?;
    Ok((scans, work.totals()))
}

/// Scan bytes from anywhere.
///
/// # Errors
/// The operating system's; `InvalidData` when the size is no multiple of 4.
pub fn scan_source(shard: &(impl Source + ?Sized), wanted: Wanted) -> io::Result<(ShardScan, Totals)> {
    let size = shard.size()?;
    if !size.is_multiple_of(4) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "size is no multiple of 4 bytes"));
    }
    let watch = Watch::default();
    let work = Work { wanted, watch: &watch, spare: Mutex::default() };
    let found = threads::run(|| work.source(shard, size))?;
    Ok((found, work.totals()))
}

/// A scan under way. What it sums up lies with those who work at it, as many as there are threads.
struct Work<'a> {
    wanted: Wanted,
    watch: &'a Watch,
    spare: Mutex<Vec<Sums>>,
}

#[derive(Default)]
struct Sums {
    ids: Histogram,
    repeats: Repeats,
}

impl Work<'_> {
    fn listed(&self, path: &Path, size: u64) -> Result<ShardScan, Error> {
        let file = File::open(path)?;
        advice::sequential(&file);
        let found = file.metadata()?;
        if found.len() > size {
            return Err(Error::Grown { had: size, have: found.len() });
        }
        let scan = self.source(&file, size).map_err(|error| match (error.kind(), file.metadata()) {
            (io::ErrorKind::UnexpectedEof, Ok(now)) => Error::CutShort { need: size, have: now.len() },
            _ => error.into(),
        })?;
        let seconds = found.mtime().saturating_mul(1_000_000_000);
        Ok(ShardScan { modified_ns: seconds.saturating_add(found.mtime_nsec()), ..scan })
    }

    fn source(&self, shard: &(impl Source + ?Sized), size: u64) -> io::Result<ShardScan> {
        if self.wanted.hash || size <= SEGMENT {
            return self.part(shard, 0, size);
        }
        (0..size.div_ceil(SEGMENT))
            .into_par_iter()
            .map(|segment| self.part(shard, segment * SEGMENT, size.min((segment + 1) * SEGMENT)))
            .try_reduce(ShardScan::default, |a, b| Ok(a.followed_by(b)))
    }

    /// The ids from byte `start` to byte `end`, both multiples of 4.
    fn part(&self, shard: &(impl Source + ?Sized), start: u64, end: u64) -> io::Result<ShardScan> {
        let mut sums = self.lock().pop().unwrap_or_default();
        let mut hasher = self.wanted.hash.then(Sha256::new);
        let mut found = ShardScan { tokens: (end - start) / 4, ..ShardScan::default() };
        for_each_piece(shard, start, end, |_, bytes| {
            if let Some(hasher) = &mut hasher {
                hasher.update(bytes);
            }
            let ids = bytes.as_chunks::<4>().0;
            found.max_id = sums.ids.count(ids, found.max_id);
            sums.repeats.take(ids);
            self.watch.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            if self.watch.stop.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            Ok(true)
        })?;
        self.lock().push(sums);
        found.sha256 = hasher.map(|hasher| hasher.finalize().into());
        let limit = self.wanted.limit.min(MAX_VOCAB);
        if found.max_id >= Some(limit) {
            // Rare enough to look for the first one in a pass of its own.
            for_each_piece(shard, start, end, |at, bytes| {
                let ids = bytes.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id));
                found.first_beyond = ((at - start) / 4..).zip(ids).find(|&(_, id)| id >= limit);
                Ok(found.first_beyond.is_none())
            })?;
        }
        Ok(found)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Sums>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn totals(self) -> Totals {
        let sums = self.spare.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (ids, repeats): (Vec<_>, Vec<_>) = sums.into_iter().map(|one| (one.ids, one.repeats)).unzip();
        let (windows, different_windows) = Repeats::merged(repeats);
        Totals { counts: Histogram::merged(ids, self.wanted.limit), windows, different_windows }
    }
}

/// Read from byte `start` to byte `end`, a piece at a time, until `act` says that it is enough.
fn for_each_piece(
    shard: &(impl Source + ?Sized),
    start: u64,
    end: u64,
    mut act: impl FnMut(u64, &[u8]) -> io::Result<bool>,
) -> io::Result<()> {
    let mut buffer = vec![0; PIECE.min(usize::try_from(end - start).unwrap_or(PIECE))];
    let mut at = start;
    while at < end {
        let size = usize::try_from(end - at).map_or(PIECE, |rest| rest.min(PIECE));
        let piece = &mut buffer[..size];
        shard.read_at(at, piece)?;
        if !act(at, piece)? {
            break;
        }
        at += size as u64;
    }
    Ok(())
}

impl ShardScan {
    /// This part and the next of a shard as one.
    fn followed_by(mut self, next: Self) -> Self {
        let shifted = next.first_beyond.map(|(index, id)| (self.tokens + index, id));
        self.first_beyond = self.first_beyond.or(shifted);
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

    fn scan(ids: &[u32], wanted: Wanted) -> (ShardScan, Totals) {
        scan_source(bytes(ids).as_slice(), wanted).unwrap()
    }

    #[test]
    fn counts_every_id_and_finds_the_first_beyond() {
        for hash in BOTH {
            let (found, totals) = scan(&[3, 1, 3, 9, 7], Wanted { limit: 7, hash });
            assert_eq!(found.tokens, 5);
            assert_eq!(found.max_id, Some(9));
            assert_eq!(found.first_beyond, Some((3, 9)));
            assert_eq!(totals.counts, [0, 1, 0, 2]);
            assert_eq!(found.sha256.is_some(), hash);
        }
    }

    #[test]
    fn an_index_counts_from_the_start_of_the_shard_in_later_pieces_and_segments() {
        let segment = usize::try_from(SEGMENT / 4).unwrap();
        for at in [PIECE / 4 + 2, segment, segment + PIECE / 4 + 1] {
            let mut ids = vec![0; segment + PIECE];
            ids[at] = u32::MAX;
            for hash in BOTH {
                let (found, totals) = scan(&ids, Wanted { limit: u32::MAX, hash });
                assert_eq!(found.first_beyond, Some((at as u64, u32::MAX)));
                assert_eq!(found.max_id, Some(u32::MAX));
                assert_eq!(totals.counts, [ids.len() as u64 - 1]);
                assert_eq!(found.tokens, ids.len() as u64);
            }
        }
    }

    #[test]
    fn an_empty_shard_has_no_highest_id() {
        for hash in BOTH {
            let (found, totals) = scan(&[], Wanted { limit: 9, hash });
            assert_eq!((found.tokens, found.max_id, totals.counts.len()), (0, None, 0));
        }
    }

    #[test]
    fn the_totals_do_not_depend_on_who_reads_what() {
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
        let [hashed, plain] =
            BOTH.map(|hash| scan_all(&shards, Wanted { limit: MAX_VOCAB, hash }, &Watch::default()).unwrap());
        assert_eq!(hashed.1, plain.1);
        assert!(hashed.1.windows > 10_000);
        for (mut hashed, plain) in hashed.0.into_iter().zip(plain.0) {
            assert!(hashed.modified_ns > 0);
            assert!(hashed.sha256.take().is_some());
            assert_eq!(hashed, plain);
        }
    }

    #[test]
    fn a_shard_that_is_not_what_was_listed_is_an_error_with_its_index() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0");
        std::fs::write(&path, bytes(&[1, 2, 3])).unwrap();
        let wanted = Wanted { limit: 10, hash: true };
        let with = |tokens| scan_all(&[(&path, 3), (&path, tokens)], wanted, &Watch::default());
        assert!(with(3).is_ok());
        assert!(matches!(with(4), Err((1, Error::CutShort { need: 16, have: 12 }))));
        assert!(matches!(with(2), Err((1, Error::Grown { had: 8, have: 12 }))));
    }

    #[test]
    fn a_scan_that_is_stopped_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0");
        std::fs::write(&path, bytes(&vec![7; 100_000])).unwrap();
        let watch = Watch::default();
        watch.stop();
        let stopped = scan_all(&[(&path, 100_000)], Wanted { limit: 10, hash: false }, &watch);
        assert!(matches!(stopped, Err((0, Error::Io(error))) if error.kind() == io::ErrorKind::Interrupted));
        assert_eq!(watch.tokens(), PIECE as u64 / 4);
    }
}
