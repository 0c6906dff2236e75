//! Text to token ids, in parallel. The ids are those of the `tokenizers` library.
//!
//! Byte-level BPE with the pre-tokenizers of GPT-2, `SmolLM2`, Qwen2 and Llama 3 has a fast path: the text is
//! split without copies, and a bounded cache of each thread has the ids of pieces that occurred before.
//! Everything else goes through the library.
#![deny(unsafe_code)]

mod cache;
mod split;
mod stored;

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use cache::Cache;
use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};
use serde_json::Value;
use split::{Kind, Splitter, parts};
pub use stored::Stored;
use tokenizers::{Model, ModelWrapper, Tokenizer};
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
    /// Bytes of text.
    pub text_bytes: usize,
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
    /// Whether the tokenizer normalizes to NFC. A text in another form then goes through the library.
    nfc: bool,
    /// Tokens that the library looks for before it splits a text. A text with one of them goes through the
    /// library.
    added: Vec<String>,
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
            Fast {
                splitter: Splitter::new(kind),
                nfc: spec.pointer("/normalizer/type").is_some(),
                in_parts: added.iter().all(|token| {
                    token.get("rstrip") != Some(&Value::Bool(true))
                        && text(token).is_none_or(|text| !text.contains(char::is_whitespace))
                }),
                added: added.iter().filter_map(text).collect(),
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
                continue;
            };
            ids.splice(0..0, ends.before.map(|id| vec![id]));
            ids.extend(ends.after.map(|id| vec![id]));
            let count: usize = ids.iter().map(Vec::len).sum();
            encoded.counts.push(i64::try_from(count).unwrap_or(i64::MAX));
            encoded.text_bytes += text_bytes;
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
        match (&self.fast, self.tokenizer.get_model()) {
            (Some(fast), ModelWrapper::BPE(model)) if fast.takes(text) => {
                let thread = rayon::current_thread_index().unwrap_or(0) % fast.caches.len();
                let mut cache = fast.caches[thread].lock().unwrap_or_else(PoisonError::into_inner);
                let mut ids = Vec::with_capacity(text.len() / 3);
                fast.splitter.split(text, |piece| {
                    cache.get(piece, &mut ids, |letters| {
                        let tokens =
                            model.tokenize(letters).map_err(|error| Error::Tokenizer(error.to_string()))?;
                        Ok(tokens.into_iter().map(|token| token.id))
                    })
                })?;
                Ok(ids)
            }
            _ => {
                let encoding = self.tokenizer.encode_fast(text, false);
                encoding
                    .map(|encoding| encoding.get_ids().to_vec())
                    .map_err(|error| Error::Tokenizer(error.to_string()))
            }
        }
    }
}

impl Fast {
    fn takes(&self, text: &str) -> bool {
        (!self.nfc || text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes)
            && !self
                .added
                .iter()
                .any(|token| memchr::memmem::find(text.as_bytes(), token.as_bytes()).is_some())
    }
}

/// The added tokens that the library looks for in texts. Special ones are treated as plain text.
fn added_tokens(spec: &Value) -> impl Iterator<Item = &Value> {
    let added = spec.get("added_tokens").and_then(Value::as_array);
    added.into_iter().flatten().filter(|token| token.get("special") != Some(&Value::Bool(true)))
}
