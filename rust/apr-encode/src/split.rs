//! Splitting a text into pieces as byte-level tokenizers do before they merge.
//!
//! The patterns are written out by hand over a table of character classes, with ASCII letters eight at a
//! time. The tokenizers library interprets them with a backtracking engine that reads some 10 MB/s.

use serde_json::{Value, json};

use crate::{
    classes::{ALONE, Classes, LETTER, LOWER, NEWLINE, NUMBER, SPACE, UPPER, Wanted},
    window,
};

/// The rest of a pattern after words and numbers, as `cl100k_base` has it.
const REST: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const CONTRACTION: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)";

/// The pre-tokenizers that have a fast path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// GPT-2's pattern; also `RoBERTa`, GPT-NeoX and the first `OLMo`.
    Gpt2,
    /// Digits one by one, and GPT-2's pattern between them.
    SmolLm,
    /// The pattern of Qwen2, Qwen2.5 and Qwen3: digits one by one.
    Qwen2,
    /// The pattern of Qwen3.5: marks are letters.
    Qwen35,
    /// The pattern of Llama 3, `cl100k_base` and `OLMo` 2: digits in groups of three.
    Llama3,
    /// The pattern of `o200k_base`: words end before a capital letter.
    O200k,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Gpt2, Self::SmolLm, Self::Qwen2, Self::Qwen35, Self::Llama3, Self::O200k];

    /// Recognize a `tokenizer.json`. `None` if it splits or merges in another way.
    pub(crate) fn of(spec: &Value) -> Option<Self> {
        let model = spec.get("model")?;
        let off = |key: &str| matches!(model.get(key), None | Some(Value::Null | Value::Bool(false)));
        let empty = |key: &str| off(key) || model.get(key) == Some(&json!(""));
        let plain = model.get("type") == Some(&json!("BPE"))
            && off("dropout")
            && off("byte_fallback")
            && off("fuse_unk")
            && empty("continuing_subword_prefix")
            && empty("end_of_word_suffix");
        let normalizer = spec.get("normalizer").unwrap_or(&Value::Null);
        if !plain || !(normalizer.is_null() || *normalizer == json!({"type": "NFC"})) {
            return None;
        }
        let cut = without_offsets(spec.get("pre_tokenizer")?);
        Self::ALL.into_iter().find(|kind| kind.pre_tokenizers().contains(&cut))
    }

    /// The values of `pre_tokenizer` in a `tokenizer.json` of this kind, without the keys that only affect
    /// offsets.
    fn pre_tokenizers(self) -> Vec<Value> {
        let byte_level = |regex| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": regex});
        let sequence = |parts: [Value; 2]| json!({"type": "Sequence", "pretokenizers": parts});
        let Some(pattern) = self.pattern() else {
            let digits = json!({"type": "Digits", "individual_digits": true});
            return vec![if self == Self::Gpt2 {
                byte_level(true)
            } else {
                sequence([digits, byte_level(true)])
            }];
        };
        // Some match begins wherever the last one ended. So nothing is between the matches, and removing it
        // is what isolating them is.
        [("Isolated", false), ("Removed", true)]
            .map(|(behavior, invert)| {
                let split = json!({
                    "type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert,
                });
                sequence([split, byte_level(false)])
            })
            .into()
    }

    /// The pattern of a `Split`; GPT-2's is within `ByteLevel`.
    fn pattern(self) -> Option<String> {
        let words = r"[^\r\n\p{L}\p{N}]?\p{L}+";
        match self {
            Self::Gpt2 | Self::SmolLm => None,
            Self::Qwen2 => Some(format!(r"{CONTRACTION}|{words}|\p{{N}}{REST}")),
            Self::Qwen35 => Some(format!(
                r"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}{}",
                REST.replace(r"\p{L}", r"\p{L}\p{M}")
            )),
            Self::Llama3 => Some(format!(r"{CONTRACTION}|{words}|\p{{N}}{{1,3}}{REST}")),
            Self::O200k => {
                let upper = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]";
                let lower = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]";
                let before = r"[^\r\n\p{L}\p{N}]?";
                Some(format!(
                    r"{before}{upper}*{lower}+{CONTRACTION}?|{before}{upper}+{lower}*{CONTRACTION}?|\p{{N}}{{1,3}}{}",
                    REST.replacen(r"[\r\n]*", r"[\r\n/]*", 1)
                ))
            }
        }
    }
}

fn without_offsets(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let kept = object.iter().filter(|(key, _)| *key != "trim_offsets");
            let mut kept: serde_json::Map<_, _> =
                kept.map(|(key, value)| (key.clone(), without_offsets(value))).collect();
            if kept.get("type") == Some(&json!("ByteLevel")) {
                // Files of older versions lack the key.
                kept.entry("use_regex").or_insert(Value::Bool(true));
            }
            Value::Object(kept)
        }
        Value::Array(items) => Value::Array(items.iter().map(without_offsets).collect()),
        other => other.clone(),
    }
}

/// Splits texts in the way of one kind.
pub(crate) struct Splitter {
    kind: Kind,
    pub(crate) classes: Classes,
}

impl Splitter {
    /// `nfc` also prepares to recognize texts that normalization leaves as they are.
    pub(crate) fn new(kind: Kind, nfc: bool) -> Self {
        let wanted = Wanted {
            marks: kind == Kind::Qwen35,
            alone: kind == Kind::SmolLm,
            case: kind == Kind::O200k,
            nfc,
        };
        Self { kind, classes: Classes::new(wanted) }
    }

    /// Call `each` with the end of each piece of a text, in order. The next piece starts there.
    #[inline]
    pub(crate) fn split<E>(&self, text: &str, each: impl FnMut(usize) -> Result<(), E>) -> Result<(), E> {
        let text = Text { bytes: text.as_bytes(), classes: &self.classes };
        match self.kind {
            Kind::Gpt2 => text.pieces(|bytes| window::gpt2(bytes, false), Text::gpt2, each),
            Kind::SmolLm => text.pieces(|bytes| window::gpt2(bytes, true), Text::gpt2, each),
            Kind::Qwen2 | Kind::Qwen35 => {
                text.pieces(|bytes| window::cl100k(bytes, 1), |text, at| text.cl100k(at, 1), each)
            }
            Kind::Llama3 => {
                text.pieces(|bytes| window::cl100k(bytes, 3), |text, at| text.cl100k(at, 3), each)
            }
            Kind::O200k => text.pieces(|_| 0, Text::o200k, each),
        }
    }
}

#[derive(Clone, Copy)]
struct Text<'a> {
    bytes: &'a [u8],
    classes: &'a Classes,
}

// Called for every piece, or every character.
#[allow(clippy::inline_always)]
impl Text<'_> {
    /// `starts` returns where pieces start in the bytes after the start of one, and `next` the end of the piece
    /// that starts at a position, whatever its characters are.
    #[inline]
    fn pieces<E>(
        self,
        starts: impl Fn(&[u8; window::BYTES]) -> u64,
        next: impl Fn(Self, usize) -> usize,
        mut each: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut start = 0;
        while start < self.bytes.len() {
            let mut ends = self.bytes[start..].first_chunk().map_or(0, &starts);
            if ends == 0 {
                start = next(self, start);
                each(start)?;
                continue;
            }
            let first = start;
            while ends != 0 {
                start = first + ends.trailing_zeros() as usize;
                each(start)?;
                ends &= ends - 1;
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn class(self, at: usize) -> (u8, usize) {
        self.classes.at(self.bytes, at)
    }

    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    #[inline]
    fn gpt2(self, start: usize) -> usize {
        let (mut class, mut length) = self.class(start);
        let mut at = start;
        let first = self.bytes[start];
        if first == b' ' {
            let (after, after_length) = self.class(start + 1);
            // White space and the end of the text end the piece.
            if after_length == 0 || after & (SPACE | ALONE) != 0 {
                return self.white_space(start);
            }
            (class, length, at) = (after, after_length, start + 1);
        } else if first == b'\'' {
            let contraction = self.contraction(start, false);
            if contraction > start {
                return contraction;
            }
        }
        if class & LETTER != 0 {
            self.letters(at + length)
        } else if class & NUMBER != 0 {
            self.while_class(at + length, |class| class & NUMBER != 0)
        } else if class & SPACE != 0 {
            self.white_space(start)
        } else if class & ALONE != 0 {
            at + length
        } else {
            self.others(at + length)
        }
    }

    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|`
    /// `\s*[\r\n]+|\s+(?!\S)|\s+`, with up to `digits` numbers in a piece.
    #[inline]
    fn cl100k(self, start: usize, digits: usize) -> usize {
        let (class, length) = self.class(start);
        let after = start + length;
        if class & LETTER != 0 {
            return self.letters(after);
        }
        if class & (NUMBER | NEWLINE) == 0 {
            if self.bytes[start] == b'\'' {
                let contraction = self.contraction(start, true);
                if contraction > start {
                    return contraction;
                }
            }
            let (next, next_length) = self.class(after);
            if next & LETTER != 0 {
                return self.letters(after + next_length);
            }
        }
        self.rest(start, class, after, digits, false)
    }

    /// `[^\r\n\p{L}\p{N}]?U*L+C?|[^\r\n\p{L}\p{N}]?U+L*C?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|`
    /// `\s*[\r\n]+|\s+(?!\S)|\s+` with U = `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`, L = `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`
    /// and C = `(?i:'s|'t|'re|'ve|'m|'ll|'d)`.
    #[inline]
    fn o200k(self, start: usize) -> usize {
        let (class, length) = self.class(start);
        let after = start + length;
        // In the order in which a backtracking engine tries them.
        let may_precede = class & (LETTER | NUMBER | NEWLINE) == 0;
        let end = may_precede
            .then(|| self.ends_low(after))
            .flatten()
            .or_else(|| self.ends_low(start))
            .or_else(|| may_precede.then(|| self.high(after)).flatten())
            .or_else(|| self.high(start));
        match end {
            Some(end) => self.contraction(end, true),
            None => self.rest(start, class, after, 3, true),
        }
    }

    /// The end of `U*L+`.
    #[inline]
    fn ends_low(self, start: usize) -> Option<usize> {
        let mut at = start;
        // Where the last character ends that is in both classes: if no lower one follows, U* gives back all
        // that is after it.
        let mut both = None;
        loop {
            let (class, length) = self.class(at);
            if class & UPPER == 0 {
                if class & LOWER != 0 {
                    return Some(self.while_class(self.lower_ascii(at), |class| class & LOWER != 0));
                }
                return both;
            }
            at += length;
            if class & LOWER != 0 {
                both = Some(at);
            }
        }
    }

    /// The end of `U+`, where no lower character follows it.
    #[inline]
    fn high(self, start: usize) -> Option<usize> {
        let end = self.while_class(start, |class| class & UPPER != 0);
        (end > start).then_some(end)
    }

    /// Numbers, other characters and white space; `slash` if a slash may follow the others.
    #[inline(always)]
    fn rest(self, start: usize, class: u8, after: usize, digits: usize, slash: bool) -> usize {
        if class & NUMBER != 0 {
            let mut end = after;
            for _ in 1..digits {
                let (class, length) = self.class(end);
                if class & NUMBER == 0 {
                    break;
                }
                end += length;
            }
            return end;
        }
        let others = if class & SPACE == 0 {
            after
        } else if self.bytes[start] == b' ' {
            let (next, length) = self.class(after);
            if length == 0 || next & (LETTER | NUMBER | SPACE) != 0 {
                return self.white_space_by_lines(start);
            }
            after + length
        } else {
            return self.white_space_by_lines(start);
        };
        let mut end = self.others(others);
        while let Some(byte) = self.bytes.get(end)
            && (matches!(byte, b'\r' | b'\n') || (slash && *byte == b'/'))
        {
            end += 1;
        }
        end
    }

    /// The end of `\p{L}*`.
    #[inline]
    fn letters(self, mut at: usize) -> usize {
        loop {
            while let Some(word) = self.eight(at) {
                let letters = leading_letters(word | SMALL, word);
                at += letters;
                if letters < 8 {
                    break;
                }
            }
            let (class, length) = self.class(at);
            if class & LETTER == 0 {
                return at;
            }
            at += length;
        }
    }

    /// The end of `[a-z]*`, or a position before it.
    #[inline]
    fn lower_ascii(self, mut at: usize) -> usize {
        while let Some(word) = self.eight(at) {
            let letters = leading_letters(word, word);
            at += letters;
            if letters < 8 {
                break;
            }
        }
        at
    }

    #[inline]
    fn eight(self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(*self.bytes.get(at..)?.first_chunk()?))
    }

    /// The end of `[^\s\p{L}\p{N}]*`.
    #[inline]
    fn others(self, at: usize) -> usize {
        self.while_class(at, |class| class & (LETTER | NUMBER | SPACE | ALONE) == 0)
    }

    #[inline]
    fn while_class(self, mut at: usize, is_in: impl Fn(u8) -> bool) -> usize {
        loop {
            let (class, length) = self.class(at);
            if length == 0 || !is_in(class) {
                return at;
            }
            at += length;
        }
    }

    /// The end of ` *`, or a position before it, and the position of the last space; `last` without one.
    #[inline]
    fn spaces(self, mut at: usize, last: usize) -> (usize, usize) {
        let start = at;
        while let Some(word) = self.eight(at) {
            let spaces = ((word ^ (0x20 * ONES)).trailing_zeros() / 8) as usize;
            at += spaces;
            if spaces < 8 {
                break;
            }
        }
        (at, if at > start { at - 1 } else { last })
    }

    /// The end of `\s+(?!\S)|\s+`.
    #[inline]
    fn white_space(self, start: usize) -> usize {
        let (mut at, mut last) = (start, start);
        loop {
            (at, last) = self.spaces(at, last);
            let (class, length) = self.class(at);
            if class & SPACE == 0 {
                // Before a word, the last one of several is given back.
                let word_follows = length != 0 && class & ALONE == 0;
                return if word_follows && last > start { last } else { at };
            }
            last = at;
            at += length;
        }
    }

    /// The end of `\s*[\r\n]+|\s+(?!\S)|\s+`.
    #[inline]
    fn white_space_by_lines(self, start: usize) -> usize {
        let (mut at, mut last, mut line) = (start, start, start);
        loop {
            (at, last) = self.spaces(at, last);
            let (class, length) = self.class(at);
            if class & SPACE == 0 {
                return if line > start {
                    line
                } else if length != 0 && last > start {
                    last
                } else {
                    at
                };
            }
            last = at;
            at += length;
            if class & NEWLINE != 0 {
                line = at;
            }
        }
    }

    /// The end of `'s|'t|'re|'ve|'m|'ll|'d` at a position; the position itself if there is none.
    #[inline]
    fn contraction(self, at: usize, any_case: bool) -> usize {
        let Some([b'\'', rest @ ..]) = self.bytes.get(at..) else { return at };
        let low = |byte: &u8| if any_case { byte.to_ascii_lowercase() } else { *byte };
        let length = match (rest.first().map(low), rest.get(1).map(low)) {
            (Some(b's' | b't' | b'm' | b'd'), _) => 1,
            (Some(b'r' | b'v'), Some(b'e')) | (Some(b'l'), Some(b'l')) => 2,
            // U+017F, the long s, is an s in any case.
            (Some(0xC5), Some(0xBF)) if any_case => 2,
            _ => return at,
        };
        at + 1 + length
    }
}

const ONES: u64 = 0x0101_0101_0101_0101;
/// With these bits, capital letters are small ones.
const SMALL: u64 = 0x20 * ONES;
const HIGH: u64 = 0x80 * ONES;

/// How many of eight bytes, from the first one on, are small ASCII letters in `small` and ASCII in `word`.
#[inline]
fn leading_letters(small: u64, word: u64) -> usize {
    let low = small & !HIGH;
    // The high bit of each byte: at least `a`, beyond `z`.
    let from_a = low + (0x80 - u64::from(b'a')) * ONES;
    let after_z = low + (0x7F - u64::from(b'z')) * ONES;
    let others = !(from_a & !after_z & !word) & HIGH;
    (others.trailing_zeros() / 8) as usize
}

/// Cut a text into parts of about `size` bytes that can be encoded on their own: before a space between two
/// ASCII letters, where every pattern starts a piece. A part is longer if there is no such position.
pub(crate) fn parts(text: &str, size: usize) -> Vec<&str> {
    let bytes = text.as_bytes();
    let mut parts = Vec::with_capacity(text.len() / size + 1);
    let mut start = 0;
    while text.len() - start > size {
        let from = start + size;
        let spaces = memchr::memchr_iter(b' ', &bytes[from..text.len() - 1]);
        let between = |at: &usize| bytes[at - 1].is_ascii_alphabetic() && bytes[at + 1].is_ascii_alphabetic();
        let Some(end) = spaces.map(|space| from + space).find(between) else { break };
        parts.push(&text[start..end]);
        start = end;
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(kind: Kind, text: &str) -> Vec<String> {
        let mut start = 0;
        let ends = ends(&Splitter::new(kind, false), text);
        ends.into_iter().map(|end| text[std::mem::replace(&mut start, end)..end].to_owned()).collect()
    }

    fn ends(splitter: &Splitter, text: &str) -> Vec<usize> {
        let mut ends = Vec::new();
        let result: Result<(), ()> = splitter.split(text, |end| {
            ends.push(end);
            Ok(())
        });
        result.unwrap();
        ends
    }

    #[test]
    fn white_space_gives_its_last_character_to_the_word() {
        assert_eq!(pieces(Kind::Gpt2, "a   b\n\nc  "), ["a", "  ", " b", "\n", "\n", "c", "  "]);
        assert_eq!(pieces(Kind::Qwen2, "a   b\n\nc  "), ["a", "  ", " b", "\n\n", "c", "  "]);
    }

    /// Short texts are cut character by character, long ones by windows. So a text is put near the start and
    /// across the end of a window, and cut where it is cut on its own.
    #[test]
    fn windows_cut_where_single_characters_are_cut() {
        let cuts = |splitter: &Splitter, before: usize, text: &str, after: usize| -> Vec<usize> {
            let text = format!("{}{text}\nQ{}", "x".repeat(before), "q".repeat(after));
            let mut ends = ends(splitter, &text);
            // The last piece is of another length.
            ends.pop();
            ends.into_iter().map(|end| end - before).collect()
        };
        let characters = ["a", "s", "L", "'", "7", " ", "\t", "\n", "(", "\u{e9}"];
        let count = characters.len();
        for kind in Kind::ALL {
            let splitter = Splitter::new(kind, false);
            for number in 0..count.pow(4) {
                let text: String = (0..4).map(|n| characters[number / count.pow(n) % count]).collect();
                let alone = cuts(&splitter, 1, &text, 1);
                for before in [9, 58, 59, 60, 61, 62] {
                    assert_eq!(cuts(&splitter, before, &text, 64), alone, "{kind:?} {text:?} after {before}");
                }
            }
        }
    }

    #[test]
    fn parts_are_cut_between_words() {
        assert_eq!(parts("ab cd  ef 1 gh ij", 2), ["ab", " cd  ef 1 gh", " ij"]);
        assert_eq!(parts("ab cd", 5), ["ab cd"]);
        assert_eq!(parts("ab ", 1), ["ab "]);
        assert_eq!(parts("", 1), [""]);
    }

    #[test]
    fn digits_are_split_as_each_kind_does() {
        assert_eq!(pieces(Kind::Gpt2, "x 1234"), ["x", " 1234"]);
        assert_eq!(pieces(Kind::SmolLm, "x  12"), ["x", "  ", "1", "2"]);
        assert_eq!(pieces(Kind::Qwen2, "x 12"), ["x", " ", "1", "2"]);
        assert_eq!(pieces(Kind::Llama3, "12345"), ["123", "45"]);
        assert_eq!(pieces(Kind::O200k, "12345"), ["123", "45"]);
    }

    #[test]
    fn words_end_before_a_capital_letter_in_o200k() {
        let text = "HTTPServer's itemCount\u{301} DON'T 中A a/\n/b";
        let expected = ["HTTPServer's", " item", "Count\u{301}", " DON'T", " 中", "A", " a", "/\n/", "b"];
        assert_eq!(pieces(Kind::O200k, text), expected);
    }

    #[test]
    fn eight_bytes_are_compared_at_once() {
        for byte in 0..=u8::MAX {
            for place in 0..8 {
                let mut bytes = *b"abcdwxyz";
                bytes[place] = byte;
                let word = u64::from_le_bytes(bytes);
                let letters = if byte.is_ascii_alphabetic() { 8 } else { place };
                let small = if byte.is_ascii_lowercase() { 8 } else { place };
                assert_eq!(leading_letters(word | SMALL, word), letters, "{byte}");
                assert_eq!(leading_letters(word, word), small, "{byte}");
            }
        }
    }

    #[test]
    fn joined_pieces_are_the_text() {
        for kind in Kind::ALL {
            for text in ["", " ", "'s'S \u{a0}\u{3000}x\r\n\t 'll  \u{1F600}e\u{301}", "١٢٣ Ⅷ"] {
                assert_eq!(pieces(kind, text).concat(), text);
            }
        }
    }
}
