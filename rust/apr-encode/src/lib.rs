//! Text to token ids, in parallel. The ids are those of the `tokenizers` library.
//!
//! Byte-level BPE with the pre-tokenizers of GPT-2, `SmolLM2`, Qwen2 and Qwen3, Llama 3 (`cl100k_base`) and
//! `o200k_base` has a fast path: the text is split by hand-written code without copies, a bounded cache of each
//! thread has the ids of pieces that occurred before, and new pieces are merged with a table of pairs.
//! Everything else goes through the library.
#![deny(unsafe_code)]

mod cache;
mod classes;
mod merge;
mod split;
mod stored;

use std::{
    borrow::Cow,
    convert::Infallible,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use cache::Cache;
use merge::{Merges, letter};
use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};
use serde_json::Value;
use split::{Kind, Splitter, parts};
pub use stored::Stored;
use tokenizers::{Model, ModelWrapper, NormalizedString, Normalizer, NormalizerWrapper, Tokenizer};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// Bytes of a long text that one thread encodes at a time. One file of 100 MB would otherwise keep a single
/// core busy.
const PART: usize = 1 << 16;

/// An error of encoding.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The library cannot read the tokenizer, or has no ids for a text.
    #[error("{0}")]
    Tokenizer(String),
    /// Threads could not be started.
    #[error("{0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// [`Encoder::stop`] was called.
    #[error("stopped")]
    Stopped,
}

/// Ids added around each text.
#[derive(Debug, Default, Clone, Copy)]
pub struct Ends {
    /// The id before the text.
    pub before: Option<u32>,
    /// The id after the text.
    pub after: Option<u32>,
}

/// Ids of several texts, one after another.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The ids of all texts, in several vectors: joining them would copy every id once more.
    pub ids: Vec<Vec<u32>>,
    /// The number of ids of each text; -1 for input that is not text.
    pub counts: Vec<i64>,
    /// The bytes of each text; 0 for input that is not text.
    pub text_bytes: Vec<u64>,
}

impl Encoded {
    /// The number of ids.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.iter().map(Vec::len).sum()
    }

    /// Whether there are no ids.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One encoded text.
struct EncodedText {
    text_bytes: usize,
    /// In several vectors if the text was encoded in parts.
    ids: Vec<Vec<u32>>,
}

/// A tokenizer that treats special tokens inside a text as plain text and adds none.
pub struct Encoder {
    tokenizer: Tokenizer,
    /// Whether texts are normalized to Unicode's form NFC first.
    nfc: bool,
    fast: Option<Fast>,
    pool: ThreadPool,
    stopped: AtomicBool,
}

/// The fast path of a tokenizer.
struct Fast {
    splitter: Splitter,
    /// `None` if the model's vocabulary or merges are not of the usual form: the library then merges.
    merges: Option<Merges>,
    /// Whether the tokenizer normalizes to NFC.
    nfc: bool,
    /// Tokens that the library looks for before it splits a text. A text with one of them goes through the
    /// library.
    added: Added,
    /// Whether a long text may be encoded in parts: no added token can reach across the end of a part.
    in_parts: bool,
    /// One cache for each thread, so that no thread waits for another.
    caches: Vec<Mutex<Cache>>,
}

impl Encoder {
    /// Create an encoder from the text of a `tokenizer.json`. `nfc` normalizes texts before the tokenizer
    /// does.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the library cannot read it, [`Error::Threads`] if no threads can be started.
    pub fn new(json: &str, threads: usize, nfc: bool) -> Result<Self, Error> {
        let wrong = |error: &dyn std::fmt::Display| Error::Tokenizer(error.to_string());
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|error| wrong(&error))?;
        tokenizer.with_truncation(None).map_err(|error| wrong(&error))?;
        tokenizer.with_padding(None);
        tokenizer.set_encode_special_tokens(true);
        let spec: Value = serde_json::from_str(json).map_err(|error| wrong(&error))?;
        let pool = ThreadPoolBuilder::new().num_threads(threads).build()?;
        let fast = Kind::of(&spec).map(|kind| {
            let added: Vec<&Value> = added_tokens(&spec).collect();
            let text = |token: &&Value| Some(token.get("content")?.as_str()?.to_owned());
            let nfc = spec.pointer("/normalizer/type").is_some();
            Fast {
                splitter: Splitter::new(kind, nfc),
                merges: spec.get("model").and_then(Merges::of),
                nfc,
                in_parts: added.iter().all(|token| {
                    token.get("rstrip") != Some(&Value::Bool(true))
                        && text(token).is_none_or(|text| !text.contains(char::is_whitespace))
                }),
                added: Added::new(added.iter().filter_map(text).collect()),
                caches: (0..threads.max(1)).map(|_| Mutex::default()).collect(),
            }
        });
        Ok(Self { tokenizer, nfc, fast, pool, stopped: AtomicBool::new(false) })
    }

    /// Whether texts take the fast path.
    #[must_use]
    pub fn is_fast(&self) -> bool {
        self.fast.is_some()
    }

    /// Return the pieces that the fast path merges, for comparing them with the library's pre-tokenizer. `None`
    /// without a fast path.
    #[must_use]
    pub fn pieces<'a>(&self, text: &'a str) -> Option<Vec<&'a str>> {
        let mut pieces = Vec::new();
        let mut start = 0;
        let split: Result<(), Infallible> = self.fast.as_ref()?.splitter.split(text, |end| {
            pieces.push(&text[start..end]);
            start = end;
            Ok(())
        });
        split.ok().map(|()| pieces)
    }

    /// Let calls of `encode`, those that run and later ones, end soon with [`Error::Stopped`].
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Encode texts.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a text that the model has no ids for, [`Error::Stopped`] after
    /// [`Encoder::stop`].
    pub fn encode(&self, texts: &[Stored<'_>], ends: Ends) -> Result<Encoded, Error> {
        let each: Vec<Option<EncodedText>> = self.pool.install(|| {
            texts.par_iter().with_max_len(1).map(|text| self.encode_one(*text)).collect::<Result<_, _>>()
        })?;
        let mut encoded = Encoded::default();
        for text in each {
            let Some(EncodedText { text_bytes, mut ids }) = text else {
                encoded.counts.push(-1);
                encoded.text_bytes.push(0);
                continue;
            };
            ids.splice(0..0, ends.before.map(|id| vec![id]));
            ids.extend(ends.after.map(|id| vec![id]));
            let count: usize = ids.iter().map(Vec::len).sum();
            encoded.counts.push(i64::try_from(count).unwrap_or(i64::MAX));
            encoded.text_bytes.push(text_bytes as u64);
            encoded.ids.append(&mut ids);
        }
        Ok(encoded)
    }

    /// `None` for input that is not text.
    fn encode_one(&self, stored: Stored<'_>) -> Result<Option<EncodedText>, Error> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        let Some(mut text) = stored.text() else { return Ok(None) };
        if self.nfc && !text.is_ascii() && is_nfc_quick(text.chars()) != IsNormalized::Yes {
            text = text.nfc().collect::<String>().into();
        }
        let parts = match &self.fast {
            Some(fast) if fast.in_parts => parts(&text, PART),
            _ => vec![&*text],
        };
        let ids = match &*parts {
            [part] => vec![self.ids(part)?],
            parts => parts.par_iter().map(|part| self.ids(part)).collect::<Result<_, _>>()?,
        };
        Ok(Some(EncodedText { text_bytes: text.len(), ids }))
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>, Error> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        let wrong = |error: tokenizers::Error| Error::Tokenizer(error.to_string());
        if let (Some(fast), ModelWrapper::BPE(model)) = (&self.fast, self.tokenizer.get_model())
            && let Some(text) = fast.normalized(text, self.tokenizer.get_normalizer()).map_err(wrong)?
        {
            let thread = rayon::current_thread_index().unwrap_or(0) % fast.caches.len();
            let mut cache = fast.caches[thread].lock().unwrap_or_else(PoisonError::into_inner);
            let library = |piece: &[u8], ids: &mut Vec<u32>| {
                let letters: String = piece.iter().map(|byte| letter(*byte)).collect();
                let tokens = model.tokenize(&letters).map_err(wrong)?;
                ids.extend(tokens.into_iter().map(|token| token.id));
                Ok(())
            };
            let (bytes, merges) = (text.as_bytes(), fast.merges.as_ref());
            cache.clear();
            fast.splitter.split(&text, |end| cache.add(bytes, end, merges, library))?;
            cache.look_up(bytes, merges, library)?;
            return Ok(cache.take());
        }
        let encoding = self.tokenizer.encode_fast(text, false);
        encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(wrong)
    }
}

impl Fast {
    /// Return the text as the library splits it; `None` if it contains an added token, for which the library
    /// looks before and after it normalizes.
    fn normalized<'a>(
        &self,
        text: &'a str,
        normalizer: Option<&NormalizerWrapper>,
    ) -> Result<Option<Cow<'a, str>>, tokenizers::Error> {
        if self.added.is_in(text.as_bytes()) {
            return Ok(None);
        }
        let is_nfc = || text.is_ascii() || self.splitter.classes.is_nfc(text.as_bytes());
        let Some(normalizer) = normalizer.filter(|_| self.nfc && !is_nfc()) else {
            return Ok(Some(text.into()));
        };
        if is_nfc_quick(text.chars()) == IsNormalized::Yes {
            return Ok(Some(text.into()));
        }
        // The library's own normalizer, whose tables are of an older Unicode.
        let mut string = NormalizedString::from(text);
        normalizer.normalize(&mut string)?;
        let text = string.get().to_owned();
        Ok((!self.added.is_in(text.as_bytes())).then(|| text.into()))
    }
}

/// Added tokens that a text may contain.
struct Added {
    tokens: Vec<String>,
    /// The first bytes of all tokens, if there are at most three different ones: a single pass then finds where
    /// a token may begin. Qwen2.5 has fourteen tokens, and all of them begin with `<`.
    first: Option<[u8; 3]>,
}

impl Added {
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

/// The added tokens that the library looks for in texts. Special ones are treated as plain text.
fn added_tokens(spec: &Value) -> impl Iterator<Item = &Value> {
    let added = spec.get("added_tokens").and_then(Value::as_array);
    added.into_iter().flatten().filter(|token| token.get("special") != Some(&Value::Bool(true)))
}
