//! A text cut as byte-level tokenizers cut it before merging.
//!
//! Their patterns end in `\s+(?!\S)|\s+`: white space without the last character before a word. The look-ahead
//! is taken out, so that an automaton that never goes back can run, and made up for afterwards.

use regex_automata::{Anchored, Input, meta::Regex};
use serde_json::{Value, json};

const GPT2: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
/// The library's own text of it.
const GPT2_WITHIN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}";
const REST: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
const LOOK_AHEAD: &str = r"(?!\S)|\s+";

/// How a tokenizer cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// GPT-2's pattern.
    Gpt2,
    /// Digits one by one, then GPT-2's pattern on what is between them.
    SmolLm,
    /// Qwen2's pattern: digits one by one.
    Qwen2,
    /// Llama 3's: digits by threes.
    Llama3,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Gpt2, Self::SmolLm, Self::Qwen2, Self::Llama3];

    /// The kind of a `tokenizer.json`; None for what is cut or merged in another way.
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

    /// What a `tokenizer.json` of this kind has there, without what concerns offsets alone.
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

/// Cuts texts of one kind.
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

    /// Call `each` with the pieces of a text in order; together they are the text.
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
            // Some alternative matches at every place: none is skipped.
            let input = Input::new(text).span(start..text.len()).anchored(Anchored::Yes);
            let mut end = self.regex.search_half(&input).map_or(text.len(), |found| found.offset());
            if end < text.len() {
                end = self.without_last_space(text, start, end);
            }
            each(&text[start..end])?;
            start = end;
        }
        Ok(())
    }

    /// What `\s+(?!\S)` would have left of white space before a word: all but its last character.
    fn without_last_space(&self, text: &str, start: usize, end: usize) -> usize {
        let found = &text[start..end];
        let Some(last) = found.chars().next_back().filter(|last| last.is_whitespace()) else { return end };
        // Runs that end in a line break are the doing of `\s*[\r\n]+`, which has no look-ahead.
        let of_line = !matches!(self.kind, Kind::Gpt2 | Kind::SmolLm) && matches!(last, '\r' | '\n');
        if of_line || found.chars().nth(1).is_none() || !found.chars().all(char::is_whitespace) {
            return end;
        }
        end - last.len_utf8()
    }
}

/// A text in parts of about `size` bytes, cut where it is cut whatever stands around: before a space between
/// two ASCII letters. A part is longer where there is no such place.
pub(crate) fn parts(text: &str, size: usize) -> Vec<&str> {
    let bytes = text.as_bytes();
    let mut found = Vec::with_capacity(text.len() / size + 1);
    let mut start = 0;
    while text.len() - start > size {
        let from = start + size;
        let spaces = memchr::memchr_iter(b' ', &bytes[from..text.len() - 1]);
        let between = |at: &usize| bytes[at - 1].is_ascii_alphabetic() && bytes[at + 1].is_ascii_alphabetic();
        let Some(end) = spaces.map(|space| from + space).find(between) else { break };
        found.push(&text[start..end]);
        start = end;
    }
    found.push(&text[start..]);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(kind: Kind, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        let done: Result<(), ()> = Splitter::new(kind).split(text, |piece| {
            found.push(piece.to_owned());
            Ok(())
        });
        done.unwrap();
        found
    }

    #[test]
    fn white_space_leaves_its_last_character_to_the_word() {
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
    fn digits() {
        assert_eq!(pieces(Kind::Gpt2, "x 1234"), ["x", " 1234"]);
        assert_eq!(pieces(Kind::SmolLm, "x  12"), ["x", "  ", "1", "2"]);
        assert_eq!(pieces(Kind::Qwen2, "x 12"), ["x", " ", "1", "2"]);
        assert_eq!(pieces(Kind::Llama3, "12345"), ["123", "45"]);
    }

    #[test]
    fn pieces_are_the_text() {
        for kind in Kind::ALL {
            for text in ["", " ", "'s'S \u{a0}\u{3000}x\r\n\t 'll  \u{1F600}e\u{301}", "١٢٣ Ⅷ"] {
                assert_eq!(pieces(kind, text).concat(), text);
            }
        }
    }
}
