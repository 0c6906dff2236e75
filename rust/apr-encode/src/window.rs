//! Where pieces begin in 64 bytes at once: ASCII text, as most of a corpus is.
//!
//! A window starts where a piece starts. Nothing before it matters then: no pattern looks back. Each class of
//! characters is a number with a bit for each byte, and what a pattern says about neighbors is a shift.

/// Bytes of a window.
pub(crate) const BYTES: usize = 64;

/// The classes of the bytes of a window: a bit for each byte.
struct Masks {
    letters: u64,
    digits: u64,
    /// White space.
    white: u64,
    /// The character U+0020.
    spaces: u64,
    newlines: u64,
    apostrophes: u64,
    others: u64,
    /// The bytes up to the last one that is not white space, before any that is not ASCII. What begins there
    /// depends on no byte after them; after white space it would.
    known: u64,
}

/// The starts of pieces in a window as GPT-2's pattern has them, without the first one, as far as they are
/// known; `alone` if every digit is a piece of its own, with the ends of a text on both sides.
#[inline]
pub(crate) fn gpt2(window: &[u8; BYTES], alone: bool) -> u64 {
    let Some(it) = Masks::of(window) else { return 0 };
    let first = |class: u64| class & !(class << 1);
    let words = if alone { first(it.letters) } else { first(it.letters) | first(it.digits) };
    let others = first(it.others);
    let after_space = it.spaces << 1;
    // What follows white space in the text that the pattern sees: not the digit at its end.
    let follows = if alone { it.letters | it.others } else { !it.white };
    let mut starts = ((words | others) & !after_space) | first(it.white) | (it.white & (follows >> 1));
    if alone {
        starts |= it.digits;
    }
    with_contractions(starts, others & !after_space, &it, window, false)
}

/// The same for the pattern of `cl100k_base`, with up to `digits` digits in a piece: one or three.
#[inline]
pub(crate) fn cl100k(window: &[u8; BYTES], digits: usize) -> u64 {
    let Some(it) = Masks::of(window) else { return 0 };
    let first = |class: u64| class & !(class << 1);
    // Line breaks right after other characters are of their piece: the sum carries through each such run.
    let after_others = it.newlines & (it.others << 1);
    let attached = it.newlines & !it.newlines.wrapping_add(after_others);
    let white = it.white & !attached;
    let breaks = it.newlines & !attached;
    let blanks = white & !breaks;
    let others = first(it.others) & !(it.spaces << 1);
    let letters = first(it.letters) & !((blanks | others) << 1);
    // After the last line break of white space, a piece begins, and at its last character, if that is a blank.
    let mut after_breaks = first(blanks) & (breaks << 1);
    let mut not_last = blanks.wrapping_add(first(blanks)) & breaks;
    while not_last != 0 {
        // Blanks before a line break: it was not the last one before them.
        let before = !blanks & ((1 << not_last.trailing_zeros()) - 1);
        let start = u64::BITS - before.leading_zeros();
        after_breaks &= !(1_u64.checked_shl(start).unwrap_or(0));
        not_last &= not_last - 1;
    }
    let mut starts = letters | others | first(white) | after_breaks | (blanks & (!it.white >> 1));
    if digits == 1 {
        starts |= it.digits;
    } else {
        // The first one of a run, and every third one after it.
        let mut at = first(it.digits);
        while at != 0 {
            starts |= at;
            at = (at << 1) & it.digits;
            at = (at << 1) & it.digits;
            at = (at << 1) & it.digits;
        }
    }
    with_contractions(starts, others, &it, window, true)
}

/// Add the ends of contractions. `others` are the starts of pieces of other characters.
#[inline]
fn with_contractions(mut starts: u64, others: u64, it: &Masks, window: &[u8; BYTES], any_case: bool) -> u64 {
    let mut known = it.known;
    let mut apostrophes = others & it.apostrophes & (it.letters >> 1) & known;
    while apostrophes != 0 {
        let at = apostrophes.trailing_zeros() as usize;
        apostrophes &= apostrophes - 1;
        let Some([_, one, two]) = window[at..].first_chunk() else {
            known &= (2 << at) - 1;
            break;
        };
        let low = |byte: &u8| if any_case { byte.to_ascii_lowercase() } else { *byte };
        let length = match (low(one), low(two)) {
            (b's' | b't' | b'm' | b'd', _) => 1,
            (b'r' | b'v', b'e') | (b'l', b'l') => 2,
            _ => continue,
        };
        // The letters after it are a piece.
        starts &= !(2 << at);
        starts |= 1_u64.checked_shl(u32::try_from(at + 1 + length).unwrap_or(u64::BITS)).unwrap_or(0);
    }
    starts & known & !1
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x80 * ONES;

impl Masks {
    /// `None` if one of the first bytes is not ASCII: a window of a few bytes takes longer than they do.
    #[inline]
    fn of(window: &[u8; BYTES]) -> Option<Self> {
        let (words, _) = window.as_chunks::<8>();
        let words: [u64; 8] = std::array::from_fn(|n| u64::from_le_bytes(words[n]));
        if (words[0] | words[1]) & HIGH != 0 {
            return None;
        }
        let [mut letters, mut digits, mut white, mut spaces, mut newlines, mut apostrophes] = [0; 6];
        let mut wide = 0;
        for (n, word) in words.iter().enumerate() {
            // Without the highest bits, no sum reaches the next byte.
            let low = word & !HIGH;
            let from = |first: u8, bytes: u64| bytes + (0x80 - u64::from(first)) * ONES;
            let between = |first: u8, last: u8, bytes: u64| from(first, bytes) & !from(last + 1, bytes);
            let is = |byte: u8| !((low ^ (u64::from(byte) * ONES)) + !HIGH);
            let space = is(b' ');
            letters |= bits(between(b'a', b'z', low | (0x20 * ONES))) << (8 * n);
            digits |= bits(between(b'0', b'9', low)) << (8 * n);
            white |= bits(between(b'\t', b'\r', low) | space) << (8 * n);
            spaces |= bits(space) << (8 * n);
            newlines |= bits(is(b'\n') | is(b'\r')) << (8 * n);
            apostrophes |= bits(is(b'\'')) << (8 * n);
            wide |= word & HIGH;
        }
        let mut ascii = u64::MAX;
        if wide != 0 {
            let first = window.iter().position(|byte| *byte >= 0x80).unwrap_or(0);
            ascii = (1 << first) - 1;
        }
        let known = u64::MAX.checked_shr((!white & ascii).leading_zeros()).unwrap_or(0);
        let others = !(letters | digits | white);
        Some(Self { letters, digits, white, spaces, newlines, apostrophes, others, known })
    }
}

/// The highest bits of eight bytes.
#[inline]
fn bits(bytes: u64) -> u64 {
    ((bytes & HIGH) >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
}
