//! Splitting a text into pieces as byte-level tokenizers do before they merge.
//!
//! Their patterns end in `\s+(?!\S)|\s+`: white space without its last character if a word follows. A finite
//! automaton, which reads each character once, has no look-ahead. So the look-ahead is left out of the
//! pattern, and the last character is given back afterwards.

use regex_automata::{Anchored, Input, meta::Regex};
use serde_json::{Value, json};

const GPT2: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
/// As the tokenizers library writes it.
const GPT2_WITHIN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}";
const REST: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
const LOOK_AHEAD: &str = r"(?!\S)|\s+";

/// The pre-tokenizers that have a fast path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// GPT-2's pattern.
    Gpt2,
    /// Digits one by one, and GPT-2's pattern between them.
    SmolLm,
    /// Qwen2's pattern: digits one by one.
    Qwen2,
    /// Llama 3's pattern: digits in groups of three.
    Llama3,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Gpt2, Self::SmolLm, Self::Qwen2, Self::Llama3];

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
        Self::ALL.into_iter().find(|kind| cut == kind.pre_tokenizer())
    }

    /// The `pre_tokenizer` of a `tokenizer.json` of this kind, without the keys that only affect offsets.
    fn pre_tokenizer(self) -> Value {
        let byte_level = |regex| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": regex});
        let split = |pattern: String| {
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
                byte_level(false),
            ]})
        };
        match self {
            Self::Gpt2 => byte_level(true),
            Self::SmolLm => json!({"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": true}, byte_level(true),
            ]}),
            Self::Qwen2 | Self::Llama3 => split(format!("{}{LOOK_AHEAD}", self.pattern())),
        }
    }

    /// The pattern without its look-ahead.
    fn pattern(self) -> String {
        match self {
            Self::Gpt2 | Self::SmolLm => GPT2.into(),
            Self::Qwen2 => format!("{GPT2_WITHIN}{REST}"),
            Self::Llama3 => format!("{GPT2_WITHIN}{{1,3}}{REST}"),
        }
    }
}

fn without_offsets(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let kept = object.iter().filter(|(key, _)| *key != "trim_offsets");
            Value::Object(kept.map(|(key, value)| (key.clone(), without_offsets(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_offsets).collect()),
        other => other.clone(),
    }
}

/// Splits texts in the way of one kind.
pub(crate) struct Splitter {
    kind: Kind,
    regex: Regex,
}

impl Splitter {
    pub(crate) fn new(kind: Kind) -> Self {
        let regex = Regex::new(&kind.pattern());
        // The patterns are constants, and a test compiles each of them.
        #[allow(clippy::missing_panics_doc, clippy::expect_used)]
        let regex = regex.expect("a constant pattern");
        Self { kind, regex }
    }

    /// Call `each` with the pieces of a text in order. Joined they are the text.
    pub(crate) fn split<E>(&self, text: &str, mut each: impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        if self.kind != Kind::SmolLm {
            return self.cut(text, &mut each);
        }
        let mut rest = text;
        while let Some(at) = rest.find(char::is_numeric) {
            let (before, from) = rest.split_at(at);
            self.cut(before, &mut each)?;
            let digit = from.chars().next().map_or(0, char::len_utf8);
            let (digit, after) = from.split_at(digit);
            each(digit)?;
            rest = after;
        }
        self.cut(rest, &mut each)
    }

    fn cut<E>(&self, text: &str, each: &mut impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        let mut start = 0;
        while start < text.len() {
            // Some alternative of the pattern matches at every position, so no character is skipped.
            let input = Input::new(text).span(start..text.len()).anchored(Anchored::Yes);
            let mut end = self.regex.search_half(&input).map_or(text.len(), |half| half.offset());
            if end < text.len() {
                end = self.without_last_space(text, start, end);
            }
            each(&text[start..end])?;
            start = end;
        }
        Ok(())
    }

    /// The end of a piece as `\s+(?!\S)` sets it: white space before a word loses its last character.
    fn without_last_space(&self, text: &str, start: usize, end: usize) -> usize {
        let piece = &text[start..end];
        let Some(last) = piece.chars().next_back().filter(|last| last.is_whitespace()) else { return end };
        // A piece that ends in a line break matched `\s*[\r\n]+`, which has no look-ahead.
        let ends_line = !matches!(self.kind, Kind::Gpt2 | Kind::SmolLm) && matches!(last, '\r' | '\n');
        if ends_line || piece.chars().nth(1).is_none() || !piece.chars().all(char::is_whitespace) {
            return end;
        }
        end - last.len_utf8()
    }
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
        let mut pieces = Vec::new();
        let result: Result<(), ()> = Splitter::new(kind).split(text, |piece| {
            pieces.push(piece.to_owned());
            Ok(())
        });
        result.unwrap();
        pieces
    }

    #[test]
    fn white_space_gives_its_last_character_to_the_word() {
        assert_eq!(pieces(Kind::Gpt2, "a   b\n\nc  "), ["a", "  ", " b", "\n", "\n", "c", "  "]);
        assert_eq!(pieces(Kind::Qwen2, "a   b\n\nc  "), ["a", "  ", " b", "\n\n", "c", "  "]);
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
