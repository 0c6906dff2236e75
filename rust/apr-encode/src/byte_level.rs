//! A `tokenizer.json` that has a fast path, read once.
//!
//! The library takes several times as long to read one, and Python used to read it for the vocabulary while the
//! encoder read it for the merges. Here one pass gives both. Whatever is not exactly of the usual form is left
//! to the library, which also has the say about errors.

use std::{borrow::Cow, collections::HashSet, fmt::Write, sync::OnceLock};

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper, Tokenizer};
use unicode_normalization::{IsNormalized, is_nfc_quick};

use crate::{
    Error,
    merge::{Merge, Merges},
    split::{Kind, Splitter},
    vocabulary::Vocabulary,
};

/// A byte-level tokenizer that has a fast path.
pub struct ByteLevel {
    json: Box<str>,
    pub(crate) splitter: Splitter,
    pub(crate) merges: Merges,
    vocabulary: Vocabulary,
    added: Vec<AddedToken>,
    unknown: Option<String>,
    is_decoded_by_byte: bool,
    normalizer: Option<NormalizerWrapper>,
    /// Tokens that the library looks for before it splits a text. A text with one of them goes through the
    /// library.
    searched: Searched,
    /// Whether a long text may be encoded in parts: no added token can reach across the end of a part.
    pub(crate) in_parts: bool,
    /// The library's own tokenizer, once it is needed.
    library: OnceLock<Tokenizer>,
}

/// A token that is added to those of the model.
#[derive(Debug, Clone, Deserialize)]
pub struct AddedToken {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub content: String,
    /// Whether it is special: never found in a text here.
    pub special: bool,
    #[serde(default)]
    rstrip: bool,
}

/// The keys of the file. Others are ignored, as the library does.
#[derive(Deserialize)]
struct File<'a> {
    version: Option<Value>,
    added_tokens: Option<Value>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    #[serde(borrow)]
    post_processor: Option<&'a RawValue>,
    decoder: Option<Value>,
    #[serde(borrow)]
    model: Model<'a>,
}

/// All keys of a model that the library knows; it refuses a model with another one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model<'a> {
    r#type: Value,
    dropout: Option<Value>,
    unk_token: Option<Value>,
    continuing_subword_prefix: Option<Value>,
    end_of_word_suffix: Option<Value>,
    fuse_unk: Option<Value>,
    byte_fallback: Option<Value>,
    ignore_merges: Option<Value>,
    vocab: Vocabulary,
    #[serde(borrow)]
    merges: Vec<Merge<'a>>,
}

impl ByteLevel {
    /// Read the text of a `tokenizer.json`. `None` if it has no fast path or is not of the usual form.
    #[must_use]
    pub fn read(json: &str) -> Option<Self> {
        let file: File<'_> = serde_json::from_str(json).ok()?;
        let model = &file.model;
        // All but the tokens, which the library would take long to read: it says whether it knows the rest.
        let mut rest = json!({
            "version": file.version.as_ref().unwrap_or(&json!("1.0")),
            "added_tokens": file.added_tokens.as_ref().unwrap_or(&json!([])),
            "normalizer": file.normalizer,
            "pre_tokenizer": file.pre_tokenizer,
            "post_processor": file.post_processor.map(|raw| serde_json::from_str::<Value>(raw.get())).transpose().ok()?,
            "decoder": file.decoder,
            "model": {"type": model.r#type, "vocab": {}, "merges": []},
        });
        let keys = [
            ("dropout", &model.dropout),
            ("unk_token", &model.unk_token),
            ("continuing_subword_prefix", &model.continuing_subword_prefix),
            ("end_of_word_suffix", &model.end_of_word_suffix),
            ("fuse_unk", &model.fuse_unk),
            ("byte_fallback", &model.byte_fallback),
            ("ignore_merges", &model.ignore_merges),
        ];
        for (key, value) in keys {
            if let Some(value) = value {
                rest["model"][key] = value.clone();
            }
        }
        let kind = Kind::of(&rest)?;
        let tokenizer: Tokenizer = serde_json::from_value(rest).ok()?;
        let added: Vec<AddedToken> =
            file.added_tokens.map_or(Some(Vec::new()), |added| serde_json::from_value(added).ok())?;
        let ignore_merges = file.model.ignore_merges == Some(Value::Bool(true));
        let unknown = file.model.unk_token.and_then(|token| token.as_str().map(str::to_owned));
        // Of the model alone: it never merges to an added token.
        let merges = Merges::new(&file.model.vocab, &file.model.merges, ignore_merges, unknown.is_some())?;
        let vocabulary = file.model.vocab.with_added(&added)?;
        let nfc = file.normalizer.is_some_and(|normalizer| !normalizer.is_null());
        let searched: Vec<&AddedToken> = added.iter().filter(|token| !token.special).collect();
        Some(Self {
            json: json.into(),
            splitter: Splitter::new(kind, nfc),
            merges,
            vocabulary,
            in_parts: !searched
                .iter()
                .any(|token| token.rstrip || token.content.contains(char::is_whitespace)),
            searched: Searched::new(searched.iter().map(|token| token.content.clone()).collect()),
            added,
            unknown,
            is_decoded_by_byte: file.decoder.is_some_and(|it| it.get("type") == Some(&json!("ByteLevel"))),
            normalizer: tokenizer.get_normalizer().cloned(),
            library: OnceLock::new(),
        })
    }

    /// The library's own tokenizer.
    pub(crate) fn library(&self) -> Result<&Tokenizer, Error> {
        if let Some(tokenizer) = self.library.get() {
            return Ok(tokenizer);
        }
        let tokenizer = crate::library(&self.json)?;
        Ok(self.library.get_or_init(|| tokenizer))
    }

    /// Return the text as the library splits it; `None` if it contains an added token, for which the library
    /// looks before and after it normalizes.
    pub(crate) fn normalized<'a>(&self, text: &'a str) -> Result<Option<Cow<'a, str>>, tokenizers::Error> {
        if self.searched.is_in(text.as_bytes()) {
            return Ok(None);
        }
        let is_nfc = || text.is_ascii() || self.splitter.classes.is_nfc(text.as_bytes());
        let Some(normalizer) = self.normalizer.as_ref().filter(|_| !is_nfc()) else {
            return Ok(Some(text.into()));
        };
        if is_nfc_quick(text.chars()) == IsNormalized::Yes {
            return Ok(Some(text.into()));
        }
        // The library's own normalizer, whose tables are of an older Unicode.
        let mut string = NormalizedString::from(text);
        normalizer.normalize(&mut string)?;
        let text = string.get().to_owned();
        Ok((!self.searched.is_in(text.as_bytes())).then(|| text.into()))
    }

    /// The id of a token, also of an added one.
    #[must_use]
    pub fn id(&self, token: &str) -> Option<u32> {
        self.vocabulary.id(token)
    }

    /// The highest id + 1.
    #[must_use]
    pub fn vocab_size(&self) -> u64 {
        self.vocabulary.highest_id().map_or(0, |id| u64::from(id) + 1)
    }

    /// The tokens that are added to those of the model.
    #[must_use]
    pub fn added_tokens(&self) -> &[AddedToken] {
        &self.added
    }

    /// The token for bytes that are not in the vocabulary.
    #[must_use]
    pub fn unknown(&self) -> Option<&str> {
        self.unknown.as_deref()
    }

    /// The bytes that ids stand for; `None` for an unknown id, or if the file has another decoder.
    #[must_use]
    pub fn decode(&self, ids: impl Iterator<Item = u32>) -> Option<Vec<u8>> {
        if !self.is_decoded_by_byte {
            return None;
        }
        let added: HashSet<u32> = self.added.iter().map(|token| token.id).collect();
        let mut bytes = Vec::new();
        for id in ids {
            let token = self.vocabulary.token(id)?;
            if added.contains(&id) || !crate::merge::push_bytes(token, &mut bytes) {
                bytes.extend_from_slice(token.as_bytes());
            }
        }
        Some(bytes)
    }

    /// The tokens with their ids, in the order of ids, and the merges, one a line: the text that the identity
    /// of a tokenizer is a hash of.
    #[must_use]
    pub fn identity_text(&self) -> String {
        let mut text = String::with_capacity(64 * self.vocabulary.len());
        let mut filler = String::new();
        for (token, id) in self.vocabulary.iter() {
            // Converters to GGUF name ids without a token so.
            if token.starts_with("[PAD") {
                filler.clear();
                let _ = write!(filler, "[PAD{id}]");
                if token == filler {
                    continue;
                }
            }
            let _ = write!(text, "{id} ");
            push_ascii(&mut text, token);
            text.push('\n');
        }
        for (left, right) in self.merges.in_order() {
            if let (Some(left), Some(right)) = (self.vocabulary.token(left), self.vocabulary.token(right)) {
                text.push('[');
                push_ascii(&mut text, left);
                text.push_str(", ");
                push_ascii(&mut text, right);
                text.push_str("]\n");
            }
        }
        text
    }
}

/// Add a string as Python's `json.dumps` writes it: in ASCII.
fn push_ascii(to: &mut String, text: &str) {
    to.push('"');
    for character in text.chars() {
        match character {
            '"' => to.push_str("\\\""),
            '\\' => to.push_str("\\\\"),
            ' '..='~' => to.push(character),
            '\n' => to.push_str("\\n"),
            '\r' => to.push_str("\\r"),
            '\t' => to.push_str("\\t"),
            '\u{8}' => to.push_str("\\b"),
            '\u{c}' => to.push_str("\\f"),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    to.push_str("\\u");
                    let digit = |shift: u16| char::from_digit(u32::from(*unit >> shift & 15), 16);
                    to.extend([12, 8, 4, 0].into_iter().filter_map(digit));
                }
            }
        }
    }
    to.push('"');
}

/// Added tokens that a text may contain.
struct Searched {
    tokens: Vec<String>,
    /// The first bytes of all tokens, if there are at most three different ones: a single pass then finds where
    /// a token may begin. Qwen2.5 has fourteen tokens, and all of them begin with `<`.
    first: Option<[u8; 3]>,
}

impl Searched {
    fn new(mut tokens: Vec<String>) -> Self {
        // The library looks for no empty token.
        tokens.retain(|token| !token.is_empty());
        let mut first: Vec<u8> = tokens.iter().filter_map(|token| token.bytes().next()).collect();
        first.sort_unstable();
        first.dedup();
        let first = match *first {
            [a] => Some([a, a, a]),
            [a, b] => Some([a, b, b]),
            [a, b, c] => Some([a, b, c]),
            _ => None,
        };
        Self { tokens, first }
    }

    fn is_in(&self, text: &[u8]) -> bool {
        if let Some([a, b, c]) = self.first {
            return memchr::memchr3_iter(a, b, c, text)
                .any(|at| self.tokens.iter().any(|token| text[at..].starts_with(token.as_bytes())));
        }
        self.tokens.iter().any(|token| memchr::memmem::find(text, token.as_bytes()).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Value {
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
            "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
        })
    }

    #[test]
    fn what_is_not_of_the_usual_form_is_left_to_the_library() {
        assert!(ByteLevel::read(&file().to_string()).is_some());
        let added = |id: u32, content: &str| {
            json!([{"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true}])
        };
        for (key, value) in [
            ("/version", json!("2.0")),
            ("/decoder", json!({"type": "Nonsense"})),
            ("/post_processor", json!({"type": "Nonsense"})),
            ("/normalizer", json!({"type": "Lowercase"})),
            ("/added_tokens", added(4, "new")),
            ("/added_tokens", added(1, "a")),
            ("/added_tokens", added(3, "")),
            ("/added_tokens", json!([{"id": 3}])),
            ("/model", json!({"type": "BPE", "vocab": {"a": 0}, "merges": [], "other": 1})),
            ("/model", json!({"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []})),
            ("/model", json!({"type": "BPE", "vocab": {"a": -1}, "merges": []})),
            ("/model", json!({"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 2})),
            ("/model", json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"})),
        ] {
            let mut other = file();
            *other.pointer_mut(key).unwrap() = value.clone();
            assert!(ByteLevel::read(&other.to_string()).is_none(), "{key} {value}");
        }
        let twice = file().to_string().replace("\"a\":0", "\"a\":0,\"a\":0");
        assert!(ByteLevel::read(&twice).is_none());
    }

    #[test]
    fn tokens_are_found_by_text_and_by_id() {
        let mut file = file();
        file["added_tokens"] = json!([{"id": 3, "content": "<é>", "special": false, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false}]);
        let read = ByteLevel::read(&file.to_string()).unwrap();
        assert_eq!(
            (read.vocab_size(), read.id("ab"), read.id("<é>"), read.id("x")),
            (4, Some(2), Some(3), None)
        );
        assert_eq!(read.decode([2, 3, 0].into_iter()).unwrap(), "ab<é>a".as_bytes());
        assert_eq!(read.decode([4].into_iter()), None);
    }

    #[test]
    fn strings_are_written_as_python_writes_them() {
        let mut text = String::new();
        push_ascii(&mut text, "a\"\\\n\u{8}\u{7f}é\u{1f600}~ ");
        assert_eq!(text, r#""a\"\\\n\b\u007f\u00e9\ud83d\ude00~ ""#);
    }
}
