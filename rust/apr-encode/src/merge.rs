//! Byte-pair merges over the bytes of a piece, with the ranks of pairs in a table.

use std::{borrow::Cow, cmp::Reverse, collections::BinaryHeap, fmt};

use hashbrown::HashMap;
use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};

use crate::vocabulary::{Text, Vocabulary};

/// A value of no pair. Ranks are in the upper half of a value, so it is the worst one.
const NONE: u64 = u64::MAX;
/// Up to so many bytes, one for each bit of `Live`, the best pair is found by looking at all pairs. For longer
/// pieces a heap finds it: a piece may have a million bytes.
const SCANNED: usize = Live::BITS as usize;
/// Which ids of a piece are not merged into another one.
type Live = u128;
/// What a pair's hash is multiplied with: 2^64 divided by the golden ratio, as in Fibonacci hashing.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// The merges of a byte-level vocabulary.
pub(crate) struct Merges {
    /// The id of each byte; `None` for a byte that is not in the vocabulary.
    bytes: [Option<u32>; 256],
    /// Whether such bytes have a token, which the library finds.
    has_unknown: bool,
    /// For each pair of bytes, the value of the pair of their ids.
    byte_pairs: Vec<u64>,
    pairs: Pairs,
    /// Pieces that are not merged because they are tokens, as in Llama 3's vocabulary.
    whole: HashMap<Box<[u8]>, u32>,
}

/// The ids of a piece and the memory for merging it, used again for each piece.
#[derive(Default)]
pub(crate) struct Merged {
    pub(crate) ids: Vec<u32>,
    /// For each id, the value of its pair with the next one.
    values: Vec<u64>,
    /// For each id, where the one before it and the one after it are.
    links: Vec<(usize, usize)>,
    heap: BinaryHeap<Reverse<(u64, usize)>>,
}

/// A merge of a `tokenizer.json`: a pair, or in files of older versions a string with a space.
pub(crate) struct Merge<'a> {
    pub(crate) left: Cow<'a, str>,
    pub(crate) right: Cow<'a, str>,
    is_string: bool,
}

impl Merges {
    /// `None` if a merge is of tokens that are not in the vocabulary, or occurs twice. `has_unknown` tells
    /// whether there is a token for unknown bytes, which are otherwise left out.
    pub(crate) fn new(
        vocabulary: &Vocabulary,
        merges: &[Merge<'_>],
        ignore_merges: bool,
        has_unknown: bool,
    ) -> Option<Self> {
        let mut bytes = [None; 256];
        for byte in 0..=u8::MAX {
            bytes[usize::from(byte)] = vocabulary.id(letter(byte).encode_utf8(&mut [0; 4]));
        }
        let mut pairs = Pairs::new(merges.len());
        let (mut both, mut last) = (String::new(), 0);
        for (rank, merge) in merges.iter().enumerate() {
            let (left, right) = (vocabulary.id(&merge.left)?, vocabulary.id(&merge.right)?);
            last = vocabulary.id_of_both(&merge.left, &merge.right, last, &mut both)?;
            let value = (u64::try_from(rank).ok()? << 32) | u64::from(last);
            // The library takes the last one of several; and it reads no list of both forms.
            if pairs.get(left, right) != NONE || merge.is_string != merges[0].is_string {
                return None;
            }
            pairs.insert(pair(left, right), value);
        }
        let mut byte_pairs = vec![NONE; 1 << 16];
        for (value, (left, right)) in
            byte_pairs.iter_mut().zip(bytes.iter().flat_map(|l| bytes.iter().map(move |r| (*l, *r))))
        {
            if let (Some(left), Some(right)) = (left, right) {
                *value = pairs.get(left, right);
            }
        }
        let mut whole = HashMap::new();
        if ignore_merges {
            for (token, id) in vocabulary.iter() {
                let mut piece = Vec::new();
                if push_bytes(token, &mut piece) {
                    whole.insert(piece.into(), id);
                }
            }
        }
        Some(Self { bytes, has_unknown, byte_pairs, pairs, whole })
    }

    /// The pairs of ids that are merged, the first one first.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = (u32, u32)> {
        let mut places: Vec<_> = self.pairs.places.iter().filter(|(_, value)| *value != NONE).collect();
        places.sort_unstable_by_key(|(_, value)| *value);
        places.into_iter().map(|(key, _)| (merged_id(key >> 32), merged_id(*key)))
    }

    /// Merge the bytes of a piece. Returns false if one of them is unknown and has a token.
    pub(crate) fn merge(&self, piece: &[u8], merged: &mut Merged) -> bool {
        let Merged { ids, values, .. } = merged;
        ids.clear();
        if let Some(id) = self.whole.get(piece) {
            ids.push(*id);
            return true;
        }
        ids.extend(piece.iter().filter_map(|byte| self.bytes[usize::from(*byte)]));
        values.clear();
        if ids.len() == piece.len() {
            let pairs = piece.iter().zip(piece.iter().skip(1));
            values.extend(pairs.map(|(l, r)| self.byte_pairs[usize::from(*l) << 8 | usize::from(*r)]));
        } else if self.has_unknown {
            return false;
        } else {
            // Those beside an unknown byte are neighbors then.
            values.extend(ids.windows(2).map(|two| self.pairs.get(two[0], two[1])));
        }
        if ids.len() <= SCANNED {
            self.merge_by_scanning(ids, values);
        } else {
            self.merge_by_heap(merged);
        }
        true
    }

    /// Merge the pair of the lowest rank, the first one of several, until no pair is left.
    fn merge_by_scanning(&self, ids: &mut Vec<u32>, values: &mut [u64]) {
        let mut live = if ids.len() == SCANNED { Live::MAX } else { (1 << ids.len()) - 1 };
        loop {
            let best = lowest(values);
            let Some(at) = values.iter().position(|value| *value == best).filter(|_| best != NONE) else {
                break;
            };
            let after_at = live & (Live::MAX << at << 1);
            let next = after_at.trailing_zeros() as usize;
            let after_next = after_at & after_at.wrapping_sub(1);
            live &= !(1 << next);
            ids[at] = merged_id(best);
            // Nothing is moved: an id that is gone has no pair.
            if let Some(value) = values.get_mut(next) {
                *value = NONE;
            }
            values[at] = NONE;
            if after_next != 0 {
                values[at] = self.pairs.get(ids[at], ids[after_next.trailing_zeros() as usize]);
            }
            let before_at = live & !(Live::MAX << at);
            if before_at != 0 {
                let before = (Live::BITS - 1 - before_at.leading_zeros()) as usize;
                values[before] = self.pairs.get(ids[before], ids[at]);
            }
        }
        let mut at = 0;
        ids.retain(|_| {
            at += 1;
            live >> (at - 1) & 1 == 1
        });
    }

    /// The same in n log n steps.
    fn merge_by_heap(&self, Merged { ids, values, links, heap }: &mut Merged) {
        let count = ids.len();
        values.push(NONE);
        links.clear();
        links.extend((0..count).map(|n| (n.wrapping_sub(1), n + 1)));
        heap.clear();
        let first = values.iter().enumerate().filter(|(_, value)| **value != NONE);
        heap.extend(first.map(|(n, value)| Reverse((*value, n))));
        let mut gone = vec![false; count];
        while let Some(Reverse((value, at))) = heap.pop() {
            // Its ids, or those beside them, were merged meanwhile.
            if gone[at] || values[at] != value {
                continue;
            }
            let next = links[at].1;
            let after = links[next].1;
            ids[at] = merged_id(value);
            gone[next] = true;
            links[at].1 = after;
            if after < count {
                links[after].0 = at;
            }
            let mut renew = |left: usize, right: usize| {
                values[left] = if right < count { self.pairs.get(ids[left], ids[right]) } else { NONE };
                if values[left] != NONE {
                    heap.push(Reverse((values[left], left)));
                }
            };
            renew(at, after);
            let before = links[at].0;
            if before < count {
                renew(before, at);
            }
        }
        let mut gone = gone.iter();
        ids.retain(|_| gone.next() == Some(&false));
    }
}

/// A table from pairs of ids to their ranks and merged ids, with open addresses.
struct Pairs {
    /// Keys and values; the value of an empty place is `NONE`.
    places: Vec<(u64, u64)>,
    /// How far a hash is shifted to be a place.
    shift: u32,
    /// A bit for each of many hashes: set if a pair has it. Most neighbors are no pair, and the bits, an eighth of a
    /// megabyte for 100,000 pairs, are in the processor's cache where the places are not.
    filter: Vec<u64>,
    filter_shift: u32,
}

/// Bits of the filter for each pair, of which one is set: an eighth of other neighbors has to be looked up.
const FILTER_BITS: usize = 8;

impl Pairs {
    fn new(count: usize) -> Self {
        // Two thirds full at most, so that a search ends soon.
        let size = (count + count / 2 + 2).next_power_of_two();
        let bits = (FILTER_BITS * count).next_power_of_two().max(64);
        Self {
            places: vec![(0, NONE); size],
            shift: 64 - size.trailing_zeros(),
            filter: vec![0; bits / 64],
            filter_shift: 64 - bits.trailing_zeros(),
        }
    }

    /// The place of a key whose hash is known: where it is, or where it would be.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // the shift leaves as many bits as there are places
    fn place(&self, key: u64, hash: u64) -> usize {
        let mut at = (hash >> self.shift) as usize;
        loop {
            let (found, value) = self.places[at];
            if found == key || value == NONE {
                return at;
            }
            at = (at + 1) & (self.places.len() - 1);
        }
    }

    /// A pair that is there already gets the new value, as in the library.
    fn insert(&mut self, key: u64, value: u64) {
        let hash = hash(key);
        let at = self.place(key, hash);
        self.places[at] = (key, value);
        let (word, bit) = self.bit(hash);
        self.filter[word] |= bit;
    }

    #[inline]
    fn get(&self, left: u32, right: u32) -> u64 {
        let key = pair(left, right);
        let hash = hash(key);
        let (word, bit) = self.bit(hash);
        if self.filter[word] & bit == 0 {
            return NONE;
        }
        let (found, value) = self.places[self.place(key, hash)];
        if found == key { value } else { NONE }
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation)] // the shift leaves as many bits as the filter has
    fn bit(&self, hash: u64) -> (usize, u64) {
        let bit = (hash >> self.filter_shift) as usize;
        (bit / 64, 1 << (bit % 64))
    }
}

#[inline]
fn hash(key: u64) -> u64 {
    (key ^ (key >> 29)).wrapping_mul(SPREAD)
}

/// The lowest of some values.
#[inline]
fn lowest(values: &[u64]) -> u64 {
    // Four at a time: one after another, each comparison would wait for the one before.
    let (fours, rest) = values.as_chunks::<4>();
    let mut lowest = [NONE; 4];
    for four in fours {
        for (low, value) in lowest.iter_mut().zip(four) {
            *low = (*low).min(*value);
        }
    }
    lowest.iter().chain(rest).copied().fold(NONE, u64::min)
}

#[inline]
fn pair(left: u32, right: u32) -> u64 {
    (u64::from(left) << 32) | u64::from(right)
}

#[allow(clippy::cast_possible_truncation)] // the lower half is the id
fn merged_id(value: u64) -> u32 {
    value as u32
}

/// GPT-2's printable character for a byte: itself where it is printable in Latin-1, else one from U+0100 on.
pub(crate) fn letter(byte: u8) -> char {
    let code = u32::from(byte);
    let moved = match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE.. => code,
        0..=b' ' => 0x100 + code,
        0x7F..=0xA0 => 0x121 + code - 0x7F,
        0xAD => 0x143,
    };
    char::from_u32(moved).unwrap_or('\u{FFFD}')
}

/// Add the bytes that the letters of a token stand for. Returns false, and adds none, if one stands for none.
pub(crate) fn push_bytes(token: &str, bytes: &mut Vec<u8>) -> bool {
    let start = bytes.len();
    for character in token.chars() {
        let Some(byte) = byte(character) else {
            bytes.truncate(start);
            return false;
        };
        bytes.push(byte);
    }
    true
}

/// The byte that a character stands for.
fn byte(character: char) -> Option<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

impl<'de: 'a, 'a> Deserialize<'de> for Merge<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        /// A line of `merges.txt`. The library skips the one with a version, and then counts ranks without it.
        fn split<E: Error>(text: &str) -> Result<(&str, &str), E> {
            let two = text.split_once(' ').filter(|(_, right)| !right.contains(' '));
            two.filter(|_| !text.starts_with("#version")).ok_or_else(|| E::custom("not a merge"))
        }

        impl<'de> Visitor<'de> for Either {
            type Value = Merge<'de>;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("two tokens")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Merge<'de>, E> {
                let (left, right) = split(text)?;
                Ok(Merge { left: left.into(), right: right.into(), is_string: true })
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Merge<'de>, E> {
                let (left, right) = split(text)?;
                Ok(Merge { left: left.to_owned().into(), right: right.to_owned().into(), is_string: true })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut two: A) -> Result<Merge<'de>, A::Error> {
                let wrong = || A::Error::custom("not a merge");
                let left: Text<'de> = two.next_element()?.ok_or_else(wrong)?;
                let right: Text<'de> = two.next_element()?.ok_or_else(wrong)?;
                // A third one is an error of the list.
                Ok(Merge { left: left.0, right: right.0, is_string: false })
            }
        }

        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(model: &Value) -> Option<Merges> {
        let merges = model["merges"].to_string();
        let merges: Vec<Merge<'_>> = serde_json::from_str(&merges).ok()?;
        let vocabulary: Vocabulary = serde_json::from_str(&model["vocab"].to_string()).ok()?;
        let flag = |key: &str| model.get(key).is_some();
        Merges::new(&vocabulary, &merges, flag("ignore_merges"), flag("unk_token"))
    }

    /// Each byte, and merges of pairs of random tokens.
    fn merges(count: usize) -> Merges {
        let mut tokens: Vec<String> = (0..=u8::MAX).map(|byte| letter(byte).to_string()).collect();
        let mut random = 1_u64;
        let mut next = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(random >> 33).unwrap() % below
        };
        let (a, c) = (usize::from(b'a'), usize::from(b'c'));
        let mut list = Vec::new();
        while list.len() < count {
            let mut one =
                || if list.is_empty() || next(3) > 0 { a + next(c - a + 1) } else { 256 + next(list.len()) };
            let (left, right) = (tokens[one()].clone(), tokens[one()].clone());
            let both = format!("{left}{right}");
            if !tokens.contains(&both) {
                tokens.push(both);
                list.push(json!(format!("{left} {right}")));
            }
        }
        let vocabulary: serde_json::Map<_, _> =
            tokens.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
        read(&json!({"vocab": vocabulary, "merges": list})).unwrap()
    }

    #[test]
    fn a_heap_and_scanning_merge_the_same_pairs() {
        let table = merges(200);
        let mut random = 7_u64;
        for length in 0..1000 {
            let piece: Vec<u8> = (0..length % 129)
                .map(|_| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    b'a' + u8::try_from((random >> 40) % 3).unwrap()
                })
                .collect();
            let mut merged = Merged::default();
            assert!(table.merge(&piece, &mut merged));
            let mut by_scanning: Vec<u32> =
                piece.iter().map(|b| table.bytes[usize::from(*b)].unwrap()).collect();
            let mut values: Vec<u64> =
                by_scanning.windows(2).map(|two| table.pairs.get(two[0], two[1])).collect();
            table.merge_by_scanning(&mut by_scanning, &mut values);
            let mut by_heap = Merged {
                ids: piece.iter().map(|b| table.bytes[usize::from(*b)].unwrap()).collect(),
                ..Merged::default()
            };
            by_heap.values = by_heap.ids.windows(2).map(|two| table.pairs.get(two[0], two[1])).collect();
            table.merge_by_heap(&mut by_heap);
            assert_eq!(by_heap.ids, by_scanning);
            assert_eq!(merged.ids, by_scanning);
        }
    }

    #[test]
    fn a_byte_that_is_not_in_the_vocabulary_is_left_out_or_left_to_the_library() {
        let mut model = json!({"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]});
        let table = read(&model).unwrap();
        let mut merged = Merged::default();
        assert!(table.merge(b"abba", &mut merged));
        assert_eq!(merged.ids, [2, 1, 0]);
        assert!(table.merge(b"acbc", &mut merged));
        assert_eq!(merged.ids, [2]);
        model["unk_token"] = json!("a");
        assert!(!read(&model).unwrap().merge(b"abc", &mut merged));
    }

    #[test]
    fn merges_that_the_library_refuses_or_reads_in_another_way_are_left_to_it() {
        let of = |merges: Value| read(&json!({"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": merges}));
        assert!(of(json!(["a b"])).is_some());
        assert_eq!(of(json!([["a", "b"]])).unwrap().in_order().collect::<Vec<_>>(), [(0, 1)]);
        for merges in [
            json!([["a", "c"]]),
            json!([["b", "a"]]),
            json!([["a", "b"], "a b"]),
            json!(["a b", "a b"]),
            json!(["#version b"]),
            json!(["a b c"]),
            json!(["ab"]),
            json!([["a", "b", "c"]]),
            json!([["a"]]),
            json!([1]),
        ] {
            assert!(of(merges.clone()).is_none(), "{merges}");
        }
    }

    #[test]
    fn a_piece_that_is_a_token_is_not_merged_if_the_model_says_so() {
        let model = json!({"vocab": {"a": 0, "b": 1, "ba": 2}, "merges": [], "ignore_merges": true});
        let mut merged = Merged::default();
        assert!(read(&model).unwrap().merge(b"ba", &mut merged));
        assert_eq!(merged.ids, [2]);
    }

    #[test]
    fn printable_characters_are_those_of_the_library() {
        let theirs = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        let ours: Vec<char> = (0..=255).map(letter).collect();
        assert_eq!(
            ours.iter().copied().collect::<std::collections::HashSet<_>>(),
            theirs.into_iter().collect()
        );
        for byte in 0..=u8::MAX {
            let mut bytes = Vec::new();
            assert!(push_bytes(&letter(byte).to_string(), &mut bytes));
            assert_eq!(bytes, [byte]);
        }
        assert!(!push_bytes("a ", &mut Vec::new()) && !push_bytes("\u{144}", &mut Vec::new()));
        assert_eq!((letter(b' '), letter(b'\n'), letter(b'a'), letter(0xAD)), ('Ġ', 'Ċ', 'a', 'Ń'));
    }
}
