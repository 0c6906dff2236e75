//! A cache of pieces of text and their ids. Source code and prose repeat most of their words.

use hashbrown::HashMap;

use crate::Error;

/// How many pieces a cache holds before it is emptied; that takes some 10 MB for each thread.
const MAX_PIECES: usize = 1 << 17;
/// Longer pieces, in bytes, rarely occur twice and are not kept.
const MAX_LENGTH: usize = 64;

/// A bounded map from pieces to ids.
#[derive(Default)]
pub(crate) struct Cache {
    /// For each piece, the position of its ids in `ids`, and how many there are.
    places: HashMap<Box<str>, (u32, u32)>,
    ids: Vec<u32>,
    letters: String,
}

impl Cache {
    /// Append the ids of a piece to `out`. For a new piece, `encode` gets its bytes as GPT-2's printable
    /// characters and returns the ids.
    pub(crate) fn get<I: Iterator<Item = u32>>(
        &mut self,
        piece: &str,
        out: &mut Vec<u32>,
        encode: impl FnOnce(&str) -> Result<I, Error>,
    ) -> Result<(), Error> {
        if let Some(&(start, count)) = self.places.get(piece) {
            let start = start as usize;
            out.extend_from_slice(&self.ids[start..start + count as usize]);
            return Ok(());
        }
        self.letters.clear();
        self.letters.extend(piece.bytes().map(letter));
        let before = out.len();
        out.extend(encode(&self.letters)?);
        if piece.len() <= MAX_LENGTH {
            if self.places.len() == MAX_PIECES {
                self.places.clear();
                self.ids.clear();
            }
            // At most 64 ids for each of 2^17 pieces: 32 bits hold them.
            if let (Ok(start), Ok(count)) = (u32::try_from(self.ids.len()), u32::try_from(out.len() - before))
            {
                self.ids.extend_from_slice(&out[before..]);
                self.places.insert(piece.into(), (start, count));
            }
        }
        Ok(())
    }
}

/// GPT-2's printable character for a byte: itself where it is printable in Latin-1, else one from U+0100 on.
fn letter(byte: u8) -> char {
    let code = u32::from(byte);
    let moved = match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE.. => code,
        0..=b' ' => 0x100 + code,
        0x7F..=0xA0 => 0x121 + code - 0x7F,
        0xAD => 0x143,
    };
    char::from_u32(moved).unwrap_or('\u{FFFD}')
}

#[cfg(test)]
mod tests {
    use super::letter;

    #[test]
    fn printable_characters_are_those_of_the_library() {
        let theirs = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        let ours: Vec<char> = (0..=255).map(letter).collect();
        assert_eq!(
            ours.iter().copied().collect::<std::collections::HashSet<_>>(),
            theirs.into_iter().collect()
        );
        assert_eq!((letter(b' '), letter(b'\n'), letter(b'a'), letter(0xAD)), ('Ġ', 'Ċ', 'a', 'Ń'));
    }
}
