//! The classes of characters by which patterns cut a text, as a table.
//!
//! Patterns are matched by the tokenizers library with Oniguruma, whose classes are those of Unicode 16. The
//! classes of `regex-syntax` are the same ones. `Digits` is another matter: the library asks
//! `char::is_numeric`, whose version is the compiler's. Tests compare every character with the library.

use std::collections::HashMap;

use regex_syntax::hir::{Class, HirKind};
use unicode_normalization::{IsNormalized::Yes, char::canonical_combining_class, is_nfc_quick};

/// `\p{L}`; in patterns that write `[\p{L}\p{M}]`, also `\p{M}`.
pub(crate) const LETTER: u8 = 1;
/// `\p{N}`.
pub(crate) const NUMBER: u8 = 2;
/// `\s`.
pub(crate) const SPACE: u8 = 4;
/// A carriage return or a line feed; also `SPACE`.
pub(crate) const NEWLINE: u8 = 8;
/// A piece of its own, with the ends of a text on both sides. It has no other class.
pub(crate) const ALONE: u8 = 16;
/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`, which may begin a word of `o200k`.
pub(crate) const UPPER: u8 = 32;
/// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`, which may end one.
pub(crate) const LOWER: u8 = 64;
/// Normalization to NFC may change the character or its neighbors.
pub(crate) const NOT_NFC: u8 = 128;

/// Characters of one block of the table.
const BLOCK: usize = 256;

/// Which classes a pattern needs.
#[derive(Debug, Clone, Copy, Default)]
#[allow(clippy::struct_excessive_bools)] // independent of each other
pub(crate) struct Wanted {
    /// Marks are letters.
    pub marks: bool,
    /// Every number is a piece of its own.
    pub alone: bool,
    /// `UPPER` and `LOWER`.
    pub case: bool,
    /// `NOT_NFC`.
    pub nfc: bool,
}

/// A table from characters to classes: the blocks of Unicode, equal ones once.
pub(crate) struct Classes {
    ascii: [u8; 128],
    /// For each block of 256 characters, where it is in `blocks`.
    starts: Vec<u32>,
    blocks: Vec<u8>,
}

impl Classes {
    pub(crate) fn new(wanted: Wanted) -> Self {
        let mut flat = vec![0_u8; char::MAX as usize + 1];
        let mut set = |class: &str, bits: u8| {
            for (first, last) in ranges(class) {
                flat[first as usize..=last as usize].iter_mut().for_each(|bits_of| *bits_of |= bits);
            }
        };
        set(if wanted.marks { r"[\p{L}\p{M}]" } else { r"\p{L}" }, LETTER);
        set(r"\p{N}", NUMBER);
        set(r"\s", SPACE);
        set(r"[\r\n]", NEWLINE);
        if wanted.case {
            set(r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", UPPER);
            set(r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", LOWER);
        }
        for character in '\0'..=char::MAX {
            let bits = &mut flat[character as usize];
            if wanted.alone && character.is_numeric() {
                *bits = ALONE;
            }
            // A mark that Unicode orders among others is left to the library, as is what may be composed.
            if wanted.nfc
                && !character.is_ascii()
                && (canonical_combining_class(character) != 0
                    || is_nfc_quick(std::iter::once(character)) != Yes)
            {
                *bits |= NOT_NFC;
            }
        }
        let mut ascii = [0; 128];
        ascii.copy_from_slice(&flat[..128]);
        let mut places: HashMap<&[u8], u32> = HashMap::new();
        let (mut starts, mut blocks) = (Vec::new(), Vec::new());
        for block in flat.chunks(BLOCK) {
            // 4,352 blocks of 256: 32 bits hold every start.
            let start = *places.entry(block).or_insert_with(|| {
                let start = u32::try_from(blocks.len()).unwrap_or(0);
                blocks.extend_from_slice(block);
                start
            });
            starts.push(start);
        }
        Self { ascii, starts, blocks }
    }

    /// The classes and the length of the character at a position; none at the end of the text.
    #[inline(always)]
    #[allow(clippy::inline_always)] // called for every character
    pub(crate) fn at(&self, text: &[u8], at: usize) -> (u8, usize) {
        let Some(&first) = text.get(at) else { return (0, 0) };
        if first < 128 { (self.ascii[usize::from(first & 127)], 1) } else { self.wide(text, at) }
    }

    /// The same for a character that is not ASCII.
    fn wide(&self, text: &[u8], at: usize) -> (u8, usize) {
        let byte = |n: usize| u32::from(text.get(at + n).copied().unwrap_or(0));
        let first = byte(0);
        // The text is UTF-8, so the first byte tells the length, and the others carry 6 bits each.
        let (code, length) = match first {
            0xF0.. => {
                let low = ((byte(1) & 63) << 12) | ((byte(2) & 63) << 6) | (byte(3) & 63);
                (((first & 7) << 18) | low, 4)
            }
            0xE0.. => (((first & 15) << 12) | ((byte(1) & 63) << 6) | (byte(2) & 63), 3),
            _ => (((first & 31) << 6) | (byte(1) & 63), 2),
        };
        let start = self.starts.get((code >> 8) as usize).copied().unwrap_or(0);
        (self.blocks[start as usize + (code & 255) as usize], length)
    }

    /// Whether normalization to NFC leaves a text as it is; false if that takes more than a glance.
    pub(crate) fn is_nfc(&self, text: &[u8]) -> bool {
        let mut at = 0;
        while at < text.len() {
            let ascii = text[at..].iter().position(|byte| *byte >= 128);
            let Some(skipped) = ascii else { return true };
            at += skipped;
            let (bits, length) = self.at(text, at);
            if bits & NOT_NFC != 0 {
                return false;
            }
            at += length;
        }
        true
    }
}

/// The ranges of a class of characters.
fn ranges(class: &str) -> Vec<(char, char)> {
    // The classes are constants, and a test compiles each of them.
    #[allow(clippy::expect_used)]
    let hir = regex_syntax::parse(class).expect("a constant class");
    match hir.kind() {
        HirKind::Class(Class::Unicode(ranges)) => ranges.iter().map(|r| (r.start(), r.end())).collect(),
        HirKind::Class(Class::Bytes(ranges)) => {
            ranges.iter().map(|r| (char::from(r.start()), char::from(r.end()))).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Wanted = Wanted { marks: false, alone: false, case: true, nfc: true };

    fn of(classes: &Classes, character: char) -> u8 {
        let mut bytes = [0; 4];
        let text = character.encode_utf8(&mut bytes).as_bytes();
        let (bits, length) = classes.at(text, 0);
        assert_eq!(length, character.len_utf8());
        bits
    }

    #[test]
    fn every_character_has_its_classes() {
        let classes = Classes::new(ALL);
        for character in '\0'..=char::MAX {
            let bits = of(&classes, character);
            assert_eq!(bits & SPACE != 0, character.is_whitespace(), "{character:?}");
            assert_eq!(bits & NEWLINE != 0, matches!(character, '\r' | '\n'), "{character:?}");
            if character.is_ascii() {
                assert_eq!(bits & LETTER != 0, character.is_ascii_alphabetic(), "{character:?}");
                assert_eq!(bits & NUMBER != 0, character.is_ascii_digit(), "{character:?}");
            }
        }
        assert_eq!(of(&classes, 'Σ'), LETTER | UPPER);
        assert_eq!(of(&classes, 'ß'), LETTER | LOWER);
        assert_eq!(of(&classes, '中'), LETTER | UPPER | LOWER);
        assert_eq!(of(&classes, '\u{301}'), UPPER | LOWER | NOT_NFC);
        assert_eq!(of(&classes, '٣'), NUMBER);
    }

    #[test]
    fn numbers_alone_have_no_other_class() {
        let classes = Classes::new(Wanted { alone: true, ..Wanted::default() });
        assert_eq!((of(&classes, '7'), of(&classes, '½'), of(&classes, 'x')), (ALONE, ALONE, LETTER));
    }

    #[test]
    fn a_text_is_nfc_only_if_that_is_certain() {
        let classes = Classes::new(ALL);
        for (text, is_nfc) in [("", true), ("plain é 中", true), ("e\u{301}", false), ("Å\u{212b}", false)]
        {
            assert_eq!(classes.is_nfc(text.as_bytes()), is_nfc, "{text:?}");
        }
    }

    /// What the linked library is built with decides ids. A new version changes ids: say so in CHANGELOG.md.
    #[test]
    fn the_unicode_versions_are_those_that_ids_were_compared_with() {
        use tokenizers::{
            NormalizedString, Normalizer,
            OffsetReferential::Original,
            OffsetType::Byte,
            PreTokenizedString, PreTokenizer,
            SplitDelimiterBehavior::Isolated,
            normalizers::unicode::NFC,
            pre_tokenizers::split::{Split, SplitPattern::Regex},
        };

        // Digits asks the standard library: Unicode 17. U+11DE0, a digit, is new there.
        assert_eq!(char::UNICODE_VERSION, (17, 0, 0));
        // Patterns ask Oniguruma: Unicode 16, which has U+10D40 and not U+11DE0.
        let split = Split::new(Regex(r"\p{N}".into()), Isolated, false).unwrap();
        let is_number = |character: char| {
            let mut text = PreTokenizedString::from(format!("a{character}"));
            split.pre_tokenize(&mut text).unwrap();
            text.get_splits(Original, Byte).len() == 2
        };
        let classes = Classes::new(Wanted::default());
        for (character, expected) in [('\u{10D40}', true), ('\u{11DE0}', false)] {
            assert_eq!(is_number(character), expected);
            assert_eq!(of(&classes, character), if expected { NUMBER } else { 0 });
        }
        // Normalization is of an older Unicode: it composes to U+1134B, of version 7, and not to U+105C9, of 16.
        let nfc = |text: &str| {
            let mut text = NormalizedString::from(text);
            NFC.normalize(&mut text).unwrap();
            text.get().to_owned()
        };
        assert_eq!(nfc("\u{11347}\u{1133E}"), "\u{1134B}");
        assert_eq!(nfc("\u{105D2}\u{307}"), "\u{105D2}\u{307}");
    }
}
