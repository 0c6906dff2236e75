//! One pass over shards: how often each id occurs, the highest, the first that is too high, what repeats,
//! SHA-256.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Mutex, PoisonError},
};

use rayon::prelude::*;

pub use super::histogram::MAX_VOCAB;
use super::{
    advice,
    histogram::{Histogram, count, count_block},
    repeats::Repeats,
    sha::{BLOCK, Sha},
};
use crate::{
    error::{Error, Part, Rule},
    source::Source,
    threads,
    watch::Watch,
};

/// Bytes read at a time: they are counted and hashed while they still lie in the core's own cache. Repeated
/// windows are looked for within such a piece, wherever a thread's part of a shard begins.
const PIECE: usize = 64 << 10;
/// Bytes that one task counts where nothing has to be hashed in order; a multiple of [`PIECE`]. So few that no
/// thread works on for long when the others have nothing left.
const SEGMENT: u64 = 4 << 20;

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

/// Scan shards in parallel, each given with the ids that it was listed with.
///
/// # Errors
/// With the index of the shard: the operating system's; [`Rule::CutShort`] where one is shorter than it was
/// listed with, [`Rule::Grown`] where it is longer. Of several, the first in the given order.
pub fn scan_all<P: AsRef<Path> + Sync>(
    shards: &[(P, u64)],
    wanted: Wanted,
    watch: &Watch,
) -> Result<(Vec<ShardScan>, Totals), (usize, Error)> {
    let work = Work { wanted, watch, spare: Mutex::default() };
    let mut scans: Vec<(usize, Result<ShardScan, Error>)> = threads::run(|| {
        let pairs = if wanted.hash { pairs(shards.len(), rayon::current_num_threads()) } else { 0 };
        let (together, alone) = shards.split_at(2 * pairs);
        let groups = together.chunks(2).chain(alone.chunks(1));
        let places = (0..pairs).map(|pair| 2 * pair).chain(2 * pairs..);
        // In this order, so that the single ones fill up what is left of the time at the end.
        places.zip(groups).par_bridge().flat_map_iter(|(i, group)| (i..).zip(work.listed(group))).collect()
    });
    scans.sort_unstable_by_key(|&(i, _)| i);
    let scans: Vec<_> =
        scans.into_iter().map(|(i, scan)| scan.map_err(|error| (i, error))).collect::<Result<_, _>>()?;
    Ok((scans, work.totals()))
}

/// How many pairs to make of shards that are hashed: two on one thread take less time than one after the other,
/// but no thread is to wait while another has two. What fills no round of pairs is shared out singly.
fn pairs(shards: usize, threads: usize) -> usize {
    let round = 2 * threads.max(1);
    let rest = shards % round;
    (shards - rest) / 2 + rest.saturating_sub(threads)
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
    /// One shard, or two.
    fn listed<P: AsRef<Path>>(&self, shards: &[(P, u64)]) -> Vec<Result<ShardScan, Error>> {
        let opened: Vec<_> =
            shards.iter().map(|(path, tokens)| Opened::new(path.as_ref(), *tokens)).collect();
        if let [Ok(a), Ok(b)] = opened.as_slice() {
            let [first, second] = self.pair([(&a.file, a.size), (&b.file, b.size)]);
            return vec![a.found(first), b.found(second)];
        }
        let alone = |shard: Opened| shard.found(self.source(&shard.file, shard.size));
        opened.into_iter().map(|shard| shard.and_then(alone)).collect()
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
        let mut sums = self.sums();
        let mut lane = Lane::new(shard, start, end, self.wanted.hash);
        self.rest(&mut lane, &mut sums)?;
        self.lock().push(sums);
        lane.found(self.wanted.limit)
    }

    /// Two shards, hashed by turns. A block of one has to wait for the one before it, so that the core is idle
    /// for more than half of the time: it takes the other shard's meanwhile, and counts.
    fn pair<S: Source>(&self, shards: [(&S, u64); 2]) -> [io::Result<ShardScan>; 2] {
        let mut sums = self.sums();
        let [mut a, mut b] = shards.map(|(shard, size)| Lane::new(shard, 0, size, true));
        let both = self.together(&mut a, &mut b, &mut sums);
        let ends = [
            both.0.and_then(|()| self.rest(&mut a, &mut sums)),
            both.1.and_then(|()| self.rest(&mut b, &mut sums)),
        ];
        self.lock().push(sums);
        let [first, second] = ends;
        [first.and_then(|()| a.found(self.wanted.limit)), second.and_then(|()| b.found(self.wanted.limit))]
    }

    /// As long as both have a whole piece.
    fn together<S: Source + ?Sized>(
        &self,
        a: &mut Lane<S>,
        b: &mut Lane<S>,
        sums: &mut Sums,
    ) -> (io::Result<()>, io::Result<()>) {
        while a.left().min(b.left()) >= PIECE as u64 {
            if let Err(error) = a.read(self.watch) {
                return (Err(error), Ok(()));
            }
            if let Err(error) = b.read(self.watch) {
                a.at -= PIECE as u64; // what was read of it is still to be counted
                return (Ok(()), Err(error));
            }
            sums.look(a);
            let table = sums.look(b);
            for (first, second) in blocks(&a.piece).0.iter().zip(blocks(&b.piece).0) {
                a.sha.block(first);
                count_block(table, first);
                b.sha.block(second);
                count_block(table, second);
            }
        }
        (Ok(()), Ok(()))
    }

    /// All that is left of one.
    fn rest(&self, lane: &mut Lane<impl Source + ?Sized>, sums: &mut Sums) -> io::Result<()> {
        while lane.left() > 0 {
            lane.read(self.watch)?;
            let table = sums.look(lane);
            if !lane.hash {
                count(table, lane.piece.as_chunks().0);
                continue;
            }
            let (blocks, rest) = blocks(&lane.piece);
            for block in blocks {
                lane.sha.block(block);
                count_block(table, block);
            }
            count(table, rest.as_chunks().0);
        }
        Ok(())
    }

    fn sums(&self) -> Sums {
        self.lock().pop().unwrap_or_default()
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

impl Sums {
    /// What repeats in a piece, its highest id, and the table in which its ids are to be counted.
    fn look(&mut self, lane: &mut Lane<impl Source + ?Sized>) -> &mut [u32] {
        let ids = lane.piece.as_chunks().0;
        self.repeats.take(ids);
        let (table, highest) = self.ids.table_for(ids, lane.found.max_id);
        lane.found.max_id = highest;
        table
    }
}

/// A shard that is open.
struct Opened {
    file: File,
    size: u64,
    modified_ns: i64,
}

impl Opened {
    fn new(path: &Path, tokens: u64) -> Result<Self, Error> {
        let size = tokens.saturating_mul(4);
        let file = File::open(path)?;
        advice::sequential(&file);
        let found = file.metadata()?;
        if found.len() > size {
            return Err(Rule::Grown { have: found.len() }.at(Part::Data, size));
        }
        let seconds = found.mtime().saturating_mul(1_000_000_000);
        Ok(Self { file, size, modified_ns: seconds.saturating_add(found.mtime_nsec()) })
    }

    fn found(&self, scan: io::Result<ShardScan>) -> Result<ShardScan, Error> {
        let scan = scan.map_err(|error| match (error.kind(), self.file.metadata()) {
            (io::ErrorKind::UnexpectedEof, Ok(now)) => Error::cut_short(self.size, now.len()),
            _ => error.into(),
        })?;
        Ok(ShardScan { modified_ns: self.modified_ns, ..scan })
    }
}

/// A part of a shard that is read a piece at a time.
struct Lane<'a, S: ?Sized> {
    shard: &'a S,
    start: u64,
    at: u64,
    end: u64,
    /// The last that was read.
    piece: Vec<u8>,
    hash: bool,
    sha: Sha,
    found: ShardScan,
}

impl<'a, S: Source + ?Sized> Lane<'a, S> {
    fn new(shard: &'a S, start: u64, end: u64, hash: bool) -> Self {
        let found = ShardScan { tokens: (end - start) / 4, ..ShardScan::default() };
        Self { shard, start, at: start, end, piece: Vec::new(), hash, sha: Sha::default(), found }
    }

    fn left(&self) -> u64 {
        self.end - self.at
    }

    /// The next piece.
    fn read(&mut self, watch: &Watch) -> io::Result<()> {
        let size = usize::try_from(self.left()).map_or(PIECE, |left| left.min(PIECE));
        self.piece.resize(size, 0);
        self.shard.read_at(self.at, &mut self.piece)?;
        self.at += size as u64;
        watch.advance(size)
    }

    /// What was found, when everything has been read.
    fn found(mut self, limit: u32) -> io::Result<ShardScan> {
        if self.hash {
            self.found.sha256 = Some(self.sha.clone().finish(blocks(&self.piece).1));
        }
        let limit = limit.min(MAX_VOCAB);
        if self.found.max_id >= Some(limit) {
            // Rare enough to look for the first one in a pass of its own.
            self.at = self.start;
            while self.found.first_beyond.is_none() && self.left() > 0 {
                let index = (self.at - self.start) / 4;
                self.read(&Watch::default())?;
                let ids = self.piece.as_chunks().0.iter().map(|id| u32::from_le_bytes(*id));
                self.found.first_beyond = (index..).zip(ids).find(|&(_, id)| id >= limit);
            }
        }
        Ok(self.found)
    }
}

fn blocks(piece: &[u8]) -> (&[[u8; BLOCK]], &[u8]) {
    piece.as_chunks()
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
    use sha2::{Digest, Sha256};

    use super::*;

    const BOTH: [bool; 2] = [true, false];

    fn bytes(ids: &[u32]) -> Vec<u8> {
        ids.iter().flat_map(|id| id.to_le_bytes()).collect()
    }

    fn digest(bytes: &[u8]) -> [u8; 32] {
        Sha256::digest(bytes).into()
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
    fn two_shards_on_one_thread_give_what_each_gives_alone() {
        let all = bytes(&(0..100_000_u32).map(|i| i.wrapping_mul(2_654_435_761) >> 14).collect::<Vec<_>>());
        let sizes = [0, 4, 64, PIECE - 4, PIECE, PIECE + 4, 3 * PIECE, 3 * PIECE + 68];
        let wanted = Wanted { limit: 1 << 17, hash: true };
        let watch = Watch::default();
        for (a, b) in sizes.iter().flat_map(|a| sizes.map(|b| (&all[..*a], &all[400_000 - b..]))) {
            let [alone, together] = [(); 2].map(|()| Work { wanted, watch: &watch, spare: Mutex::default() });
            let pair = together.pair([(&a, a.len() as u64), (&b, b.len() as u64)]).map(Result::unwrap);
            assert_eq!(pair, [a, b].map(|one| alone.source(one, one.len() as u64).unwrap()));
            assert_eq!(pair.map(|scan| scan.sha256.unwrap()), [a, b].map(digest));
            assert_eq!(together.totals(), alone.totals());
        }
    }

    #[test]
    fn of_two_shards_on_one_thread_each_has_its_own_error() {
        let wanted = Wanted { limit: 9, hash: true };
        let watch = Watch::default();
        let work = Work { wanted, watch: &watch, spare: Mutex::default() };
        let (whole, size) = (&bytes(&vec![7; PIECE])[..], 4 * PIECE as u64);
        let short = &whole[4..];
        for (pair, right) in
            [([whole, short], [true, false]), ([short, whole], [false, true]), ([short; 2], [false; 2])]
        {
            let [a, b] = work.pair([(&pair[0], size), (&pair[1], size)]);
            assert_eq!([a.is_ok(), b.is_ok()], right);
            let found = a.or(b).ok().map(|scan| scan.sha256.unwrap());
            assert_eq!(found, right.contains(&true).then(|| digest(whole)));
        }
    }

    #[test]
    fn pairs_are_made_as_long_as_no_thread_waits_for_them() {
        for (shards, threads, expected) in [
            (0, 2, 0),
            (1, 2, 0),
            (2, 2, 0),
            (3, 2, 1),
            (4, 2, 2),
            (5, 2, 2),
            (10, 2, 4),
            (7, 1, 3),
            (228, 64, 100),
        ] {
            assert_eq!(pairs(shards, threads), expected, "{shards} shards on {threads} threads");
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
        let (shard, error) = with(4).unwrap_err();
        assert!(matches!(error.rule, Rule::CutShort { need: 16 }));
        assert_eq!((shard, error.offset()), (1, Some(12)));
        let (shard, error) = with(2).unwrap_err();
        assert!(matches!(error.rule, Rule::Grown { have: 12 }));
        assert_eq!((shard, error.offset()), (1, Some(8)));
    }

    #[test]
    fn a_scan_that_is_stopped_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0");
        std::fs::write(&path, bytes(&vec![7; 100_000])).unwrap();
        let watch = Watch::default();
        watch.stop();
        let stopped = scan_all(&[(&path, 100_000)], Wanted { limit: 10, hash: false }, &watch);
        let (shard, Error { rule: Rule::Io(error), .. }) = stopped.unwrap_err() else {
            panic!("not stopped")
        };
        assert_eq!((shard, error.kind()), (0, io::ErrorKind::Interrupted));
        assert_eq!(watch.bytes(), PIECE as u64);
    }
}
