//! A bounded cache from pieces of text to ids. Source code and prose repeat most of their words.
//!
//! Most pieces are short and have few ids. They are kept in a table of fixed size: key, length and ids are in
//! 32 bytes of one cache line, nothing is allocated, and of the two pieces in a line the older one gives way.
//! Longer pieces, and the ids of short pieces with many ids, are kept in two generations. When the younger one is full, the older one is dropped; a piece
//! that is asked for moves to the younger one, so what is in use is never lost at once.

use std::mem;

use hashbrown::HashTable;

use crate::{
    Error,
    merge::{Merged, Merges},
};

/// Lines of the table for short pieces, of 64 bytes each: 8 MB for each thread.
const LINES: usize = 1 << 17;
/// Pieces that are looked up together. The processor then waits for many of their lines at the same time, which
/// it does not while it guesses where pieces end.
const TOGETHER: usize = 128;
/// Longest short piece, in bytes: its length is the 16th byte of its key.
const SHORT: usize = 15;
/// Most ids that are in the entry of a short piece itself.
const FEW: usize = 4;
/// The number of ids in the entry of a piece with more: the entry says where they are instead.
const MANY: u128 = 7;
/// Longer pieces, in bytes, rarely occur twice and are not kept.
const LONGEST: usize = 256;
/// Bytes of the pieces of one generation and of their ids. With tables, two take some 6 MB for each thread.
const GENERATION: usize = 1 << 21;
/// Ids of short pieces with many ids, of one generation: 512 kB.
const MANY_IDS: usize = 1 << 17;
/// Ids of a text up to which memory is kept for the next one.
const KEPT: usize = 1 << 20;

/// For each length, the bytes of a key that are of the piece.
const MASKS: [u128; SHORT + 1] = {
    let mut masks = [0; SHORT + 1];
    let mut length = 0;
    while length <= SHORT {
        masks[length] = (1 << (8 * length)) - 1;
        length += 1;
    }
    masks
};
/// Where the length of a piece is in its key, and the number of ids in an entry.
const LENGTH_BIT: u32 = 120;
const COUNT_BIT: u32 = 124;
const WITHOUT_COUNT: u128 = (1 << COUNT_BIT) - 1;

/// A short piece. An empty one has length 0, which no piece has.
#[derive(Default, Clone, Copy)]
struct Entry {
    /// The bytes of the piece, its length, and the number of ids.
    key: u128,
    ids: [u32; FEW],
}

#[derive(Default, Clone, Copy)]
#[repr(align(64))]
struct Line([Entry; 2]);

/// The cache of one thread, with the memory that it encodes in.
pub(crate) struct Cache {
    lines: Box<[Line; LINES]>,
    /// Where the pieces end that are to be looked up, and the first one starts.
    ends: Vec<usize>,
    start: usize,
    /// The keys of these pieces and their lines.
    keys: [(u128, usize); TOGETHER],
    /// The ids of short pieces with many ids: those of an even age, and of an odd one.
    many: [Vec<u32>; 2],
    age: u32,
    young: Generation,
    old: Generation,
    merged: Merged,
    /// The ids of the text that is being encoded: the first `count`.
    ids: Vec<u32>,
    count: usize,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            lines: lines(),
            ends: Vec::with_capacity(TOGETHER),
            start: 0,
            keys: [(0, 0); TOGETHER],
            many: Default::default(),
            age: 1,
            young: Generation::default(),
            old: Generation::default(),
            merged: Merged::default(),
            ids: Vec::new(),
            count: 0,
        }
    }
}

/// An empty table, without 8 MB on the stack.
fn lines() -> Box<[Line; LINES]> {
    // The vector has as many lines as the array.
    #[allow(clippy::expect_used)]
    vec![Line::default(); LINES].into_boxed_slice().try_into().ok().expect("equal lengths")
}

impl Cache {
    /// Add the piece of a text that ends at a position and starts at the end of the last one. `library` encodes
    /// what `merges` cannot.
    #[inline]
    pub(crate) fn add(
        &mut self,
        text: &[u8],
        end: usize,
        merges: Option<&Merges>,
        library: impl Fn(&[u8], &mut Vec<u32>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.ends.push(end);
        if self.ends.len() < TOGETHER { Ok(()) } else { self.look_up(text, merges, library) }
    }

    /// Look up the pieces that were added since the last call.
    pub(crate) fn look_up(
        &mut self,
        text: &[u8],
        merges: Option<&Merges>,
        library: impl Fn(&[u8], &mut Vec<u32>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut start = self.start;
        for (place, end) in self.keys.iter_mut().zip(&self.ends) {
            let length = end - start;
            // A longer piece has no key, and 0 is none: a key has a length.
            *place = if length <= SHORT {
                let key = key(text, start, length);
                (key, line_of(key))
            } else {
                (0, 0)
            };
            start = *end;
        }
        for n in 0..self.ends.len() {
            let (key, line) = self.keys[n];
            if key != 0 {
                let [newer, older] = &self.lines[line].0;
                let mut entry = newer;
                if newer.key & WITHOUT_COUNT != key {
                    entry = older;
                }
                if entry.key & WITHOUT_COUNT == key {
                    let count = entry.key >> COUNT_BIT;
                    if count == MANY {
                        let [age, start, count, _] = entry.ids;
                        // Ids of the age before the last one are gone, and the piece is merged again.
                        if self.age - age < 2 {
                            let ids = &self.many[(age & 1) as usize][start as usize..][..count as usize];
                            push(&mut self.ids, &mut self.count, ids);
                            continue;
                        }
                    } else {
                        if self.ids.len() < self.count + FEW {
                            self.ids.resize(2 * self.ids.len() + FEW, 0);
                        }
                        // All four, always: a copy of fixed size is one instruction.
                        self.ids[self.count..self.count + FEW].copy_from_slice(&entry.ids);
                        self.count += count as usize;
                        continue;
                    }
                }
            }
            let start = if n == 0 { self.start } else { self.ends[n - 1] };
            self.add_new(&text[start..self.ends[n]], key, line, merges, &library)?;
        }
        self.start = self.ends.last().copied().unwrap_or(self.start);
        self.ends.clear();
        Ok(())
    }

    /// Return the ids of a text whose pieces were looked up.
    pub(crate) fn take(&mut self) -> Vec<u32> {
        let count = mem::take(&mut self.count);
        if self.ids.len() <= KEPT {
            return self.ids[..count].to_vec();
        }
        let mut ids = mem::take(&mut self.ids);
        ids.truncate(count);
        ids
    }

    /// Prepare for a new text, also after an error in the last one.
    pub(crate) fn clear(&mut self) {
        self.ends.clear();
        self.start = 0;
        self.count = 0;
    }

    /// Add a piece that is not in the table: one from the generations, or a new one.
    #[inline(never)]
    fn add_new(
        &mut self,
        piece: &[u8],
        key: u128,
        line: usize,
        merges: Option<&Merges>,
        library: impl Fn(&[u8], &mut Vec<u32>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let is_kept = key == 0 && piece.len() <= LONGEST;
        let hash = if is_kept { hash(piece) } else { 0 };
        if is_kept {
            if let Some(ids) = self.young.get(hash, piece) {
                push(&mut self.ids, &mut self.count, ids);
                return Ok(());
            }
            if let Some(ids) = self.old.get(hash, piece) {
                push(&mut self.ids, &mut self.count, ids);
                self.young.insert(hash, piece, ids);
                self.let_age();
                return Ok(());
            }
        }
        if !merges.is_some_and(|merges| merges.merge(piece, &mut self.merged)) {
            self.merged.ids.clear();
            library(piece, &mut self.merged.ids)?;
        }
        let ids = &self.merged.ids;
        push(&mut self.ids, &mut self.count, ids);
        if key != 0 && !ids.is_empty() {
            let mut entry = Entry { key: key | ((ids.len() as u128) << COUNT_BIT), ids: [0; FEW] };
            if ids.len() <= FEW {
                entry.ids[..ids.len()].copy_from_slice(ids);
            } else {
                entry.key = key | (MANY << COUNT_BIT);
                entry.ids = keep_many(&mut self.many, &mut self.age, ids);
            }
            let line = &mut self.lines[line].0;
            // Not twice: the ids of the same piece may be gone.
            let place = usize::from(line[1].key & WITHOUT_COUNT == key);
            if place == 0 && line[0].key & WITHOUT_COUNT != key {
                line[1] = line[0];
            }
            line[place] = entry;
        } else if is_kept {
            self.young.insert(hash, piece, ids);
            self.let_age();
        }
        Ok(())
    }

    fn let_age(&mut self) {
        if self.young.bytes.len() + 4 * self.young.ids.len() >= GENERATION {
            mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
    }
}

/// Keep the ids of a short piece, and return what its entry holds: their age, where they are, their number.
fn keep_many(many: &mut [Vec<u32>; 2], age: &mut u32, ids: &[u32]) -> [u32; FEW] {
    if many[(*age & 1) as usize].len() + ids.len() > MANY_IDS {
        *age += 1;
        many[(*age & 1) as usize].clear();
    }
    let place = &mut many[(*age & 1) as usize];
    // At most 2^17 ids: 32 bits hold both numbers.
    let [start, count] = [place.len(), ids.len()].map(|n| u32::try_from(n).unwrap_or(0));
    place.extend_from_slice(ids);
    [*age, start, count, 0]
}

#[inline]
fn push(all: &mut Vec<u32>, count: &mut usize, ids: &[u32]) {
    let end = *count + ids.len();
    if all.len() < end {
        all.resize(2 * end, 0);
    }
    all[*count..end].copy_from_slice(ids);
    *count = end;
}

/// Longer pieces.
#[derive(Default)]
struct Generation {
    places: HashTable<Place>,
    bytes: Vec<u8>,
    ids: Vec<u32>,
}

struct Place {
    hash: u64,
    /// Where the piece is in `bytes`, and where its ids are.
    start: u32,
    length: u32,
    ids: u32,
    count: u32,
}

impl Generation {
    fn get(&self, hash: u64, piece: &[u8]) -> Option<&[u32]> {
        let place = self.places.find(hash, |place| {
            let start = place.start as usize;
            place.hash == hash && &self.bytes[start..start + place.length as usize] == piece
        })?;
        Some(&self.ids[place.ids as usize..][..place.count as usize])
    }

    fn insert(&mut self, hash: u64, piece: &[u8], ids: &[u32]) {
        let place = (self.bytes.len(), piece.len(), self.ids.len(), ids.len());
        // A generation is smaller than 32 bits by far.
        let (Ok(start), Ok(length), Ok(first), Ok(count)) =
            (place.0.try_into(), place.1.try_into(), place.2.try_into(), place.3.try_into())
        else {
            return;
        };
        self.bytes.extend_from_slice(piece);
        self.ids.extend_from_slice(ids);
        let place = Place { hash, start, length, ids: first, count };
        self.places.insert_unique(hash, place, |place| place.hash);
    }

    fn clear(&mut self) {
        self.places.clear();
        self.bytes.clear();
        self.ids.clear();
    }
}

/// The bytes of a short piece, and its length.
#[inline]
fn key(text: &[u8], start: usize, length: usize) -> u128 {
    let rest = &text[start..];
    let bytes = if let Some(sixteen) = rest.first_chunk() {
        u128::from_le_bytes(*sixteen)
    } else {
        let mut sixteen = [0; 16];
        sixteen[..rest.len()].copy_from_slice(rest);
        u128::from_le_bytes(sixteen)
    };
    (bytes & MASKS[length & SHORT]) | ((length as u128) << LENGTH_BIT)
}

#[inline]
#[allow(clippy::cast_possible_truncation)] // halves of a key, and as many bits as there are lines
fn line_of(key: u128) -> usize {
    (mix(key as u64, (key >> 64) as u64) >> (64 - LINES.trailing_zeros())) as usize
}

/// Both halves of a product, with numbers from the digits of pi: every bit counts for the upper ones.
#[inline]
#[allow(clippy::cast_possible_truncation)] // halves of a product
fn mix(left: u64, right: u64) -> u64 {
    let product = u128::from(left ^ 0x2436_7F6A_8885_A308) * u128::from(right ^ 0xD313_198A_2E03_7073);
    (product as u64) ^ (product >> 64) as u64
}

pub(crate) fn hash(piece: &[u8]) -> u64 {
    let (words, rest) = piece.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let words = words.iter().chain([&last]).map(|word| u64::from_le_bytes(*word));
    words.fold(piece.len() as u64, |hash, word| mix(hash.rotate_left(32), word))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ids of a piece are its bytes and its length: no merges, so `library` encodes.
    fn ids(cache: &mut Cache, pieces: &[&str]) -> Vec<u32> {
        let text = pieces.concat();
        let library = |piece: &[u8], ids: &mut Vec<u32>| {
            ids.extend(expected(piece));
            Ok(())
        };
        cache.clear();
        let mut end = 0;
        for piece in pieces {
            end += piece.len();
            cache.add(text.as_bytes(), end, None, library).unwrap();
        }
        cache.look_up(text.as_bytes(), None, library).unwrap();
        cache.take()
    }

    fn expected(piece: &[u8]) -> Vec<u32> {
        // Short pieces of one to nine ids, longer ones of many.
        let many = if piece.len() < 16 { 1 + piece[0] as usize % 9 } else { piece.len() };
        (0..many)
            .map(|n| u32::from(piece[n % piece.len()]) + 256 * u32::try_from(piece.len()).unwrap())
            .collect()
    }

    #[test]
    fn pieces_of_any_length_and_number_of_ids_come_back() {
        let mut cache = Cache::default();
        // More than the table and the generations hold, and each asked for again while it may be there.
        for first in (0..400_000_u32).step_by(100) {
            let pieces: Vec<String> =
                (first..first + 100).map(|n| format!("{n:x}").repeat(1 + n as usize % 40)).collect();
            let pieces: Vec<&str> = pieces.iter().flat_map(|piece| [piece.as_str(); 2]).collect();
            let all: Vec<u32> = pieces.iter().flat_map(|piece| expected(piece.as_bytes())).collect();
            assert_eq!(ids(&mut cache, &pieces), all);
        }
        let held = [&cache.young, &cache.old].map(|one| one.bytes.len() + 4 * one.ids.len());
        assert!(held.iter().all(|held| *held < GENERATION + 5 * LONGEST), "{held:?}");
        assert!(cache.many.iter().all(|ids| ids.len() <= MANY_IDS));
    }

    #[test]
    fn zero_bytes_and_lengths_are_told_apart() {
        let mut cache = Cache::default();
        let pieces = ["a", "a\0", "a\0\0", "\0", "\0\0", "b\0\0\0\0\0\0\0", "b"];
        let all: Vec<u32> = pieces.iter().flat_map(|piece| expected(piece.as_bytes())).collect();
        for _ in 0..3 {
            assert_eq!(ids(&mut cache, &pieces), all);
        }
    }

    #[test]
    fn what_was_added_before_an_error_is_forgotten() {
        let mut cache = Cache::default();
        cache.add(b"no", 2, None, |_, _| Ok(())).unwrap();
        assert!(cache.look_up(b"no", None, |_, _| Err(Error::Stopped)).is_err());
        assert_eq!(ids(&mut cache, &["yes"]), expected(b"yes"));
    }
}
