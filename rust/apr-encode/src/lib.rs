//! Text to token ids, the same ids as the `tokenizers` library gives, on threads of our own.
//!
//! Byte-level BPE with the pre-tokenizers of GPT-2, `SmolLM2`, Qwen2 and Llama 3 takes a faster way: the text is
//! cut as it stands, and a bounded cache for each thread gives the ids of what was met before. Everything else
//! goes through the library as it is.
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

/// Bytes of a long text that one thread encodes at a time.
const PART: usize = 1 << 16;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The library does not read the tokenizer.
    #[error("{0}")]
    Tokenizer(String),
    /// Threads could not be started.
    #[error("{0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// `stop` was called.
    #[error("stopped")]
    Stopped,
}

/// Ids around each text.
#[derive(Debug, Default, Clone, Copy)]
pub struct Ends {
    /// Before it.
    pub before: Option<u32>,
    /// After it.
    pub after: Option<u32>,
}

/// Ids of several texts, one after another.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The ids of all texts, in pieces.
    pub ids: Vec<Vec<u32>>,
    /// How many ids each text has; -1 for what was no text.
    pub counts: Vec<i64>,
    /// Bytes of text.
    pub text_bytes: usize,
}

impl Encoded {
    /// How many ids there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.iter().map(Vec::len).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One text.
struct One {
    text_bytes: usize,
    /// Its ids, in pieces.
    ids: Vec<Vec<u32>>,
}

/// A tokenizer that takes special tokens inside a text for text and adds none.
pub struct Encoder {
    tokenizer: Tokenizer,
    /// Whether texts are brought into Unicode's form NFC first.
    nfc: bool,
    fast: Option<Fast>,
    pool: ThreadPool,
    stopped: AtomicBool,
}

/// The faster way, where the tokenizer is of a kind that has one.
struct Fast {
    splitter: Splitter,
    /// The text has to be in NFC: any other goes through the library.
    nfc: bool,
    /// Tokens that are found in a text before it is cut: a text with one goes through the library.
    added: Vec<String>,
    /// Whether a long text may be encoded in parts: no added token reaches over the end of one.
    in_parts: bool,
    /// One for each thread.
    caches: Vec<Mutex<Cache>>,
}

impl Encoder {
    /// From the text of a `tokenizer.json`, on as many threads as given; `nfc` brings texts into that form first.
    ///
    /// # Errors
    /// The library does not read it.
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

    /// Whether texts take the faster way.
    #[must_use]
    pub fn is_fast(&self) -> bool {
        self.fast.is_some()
    }

    /// Let calls of `encode`, those that run and later ones, end soon with [`Error::Stopped`].
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// The ids of each text.
    ///
    /// # Errors
    /// The library's own, for a text that its model has no ids for; `stop` was called.
    pub fn encode(&self, texts: &[Stored<'_>], ends: Ends) -> Result<Encoded, Error> {
        let each: Vec<Option<One>> = self.pool.install(|| {
            texts.par_iter().with_max_len(1).map(|text| self.one(*text)).collect::<Result<_, _>>()
        })?;
        let mut encoded = Encoded::default();
        for found in each {
            let Some(One { text_bytes, mut ids }) = found else {
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

    /// None for what is no text.
    fn one(&self, stored: Stored<'_>) -> Result<Option<One>, Error> {
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
        Ok(Some(One { text_bytes: text.len(), ids }))
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

/// Tokens that are looked for in texts; special ones are not, they are text.
fn added_tokens(spec: &Value) -> impl Iterator<Item = &Value> {
    let added = spec.get("added_tokens").and_then(Value::as_array);
    added.into_iter().flatten().filter(|token| token.get("special") != Some(&Value::Bool(true)))
}
