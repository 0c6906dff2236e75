//! Text to token ids, the same ids as the `tokenizers` library gives, on threads of our own.
//!
//! Byte-level BPE with the pre-tokenisers of GPT-2, `SmolLM2`, Qwen2 and Llama 3 takes a faster way: the text is
//! cut as it stands, and a bounded cache for each thread gives the ids of what was met before. Everything else
//! goes through the library as it is.
#![deny(unsafe_code)]

mod cache;
mod split;

use std::sync::{Mutex, PoisonError};

use cache::Cache;
use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};
use serde_json::Value;
use split::{Kind, Splitter};
use tokenizers::{Model, ModelWrapper, Tokenizer};
use unicode_normalization::{IsNormalized, is_nfc_quick};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The library does not read the tokenizer.
    #[error("{0}")]
    Tokenizer(String),
    /// Threads could not be started.
    #[error("{0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// Ids of several texts, one after another.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The ids of all texts.
    pub ids: Vec<u32>,
    /// How many of them each text has.
    pub counts: Vec<usize>,
}

/// A tokenizer that takes special tokens inside a text for text and adds none.
pub struct Encoder {
    tokenizer: Tokenizer,
    fast: Option<Fast>,
    pool: ThreadPool,
}

/// The faster way, where the tokenizer is of a kind that has one.
struct Fast {
    splitter: Splitter,
    /// The text has to be in NFC: any other goes through the library.
    nfc: bool,
    /// Tokens that are found in a text before it is cut: a text with one goes through the library.
    added: Vec<String>,
    /// One for each thread.
    caches: Vec<Mutex<Cache>>,
}

impl Encoder {
    /// From the text of a `tokenizer.json`, on as many threads as given.
    ///
    /// # Errors
    /// The library does not read it.
    pub fn new(json: &str, threads: usize) -> Result<Self, Error> {
        let wrong = |error: &dyn std::fmt::Display| Error::Tokenizer(error.to_string());
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|error| wrong(&error))?;
        tokenizer.with_truncation(None).map_err(|error| wrong(&error))?;
        tokenizer.with_padding(None);
        tokenizer.set_encode_special_tokens(true);
        let spec: Value = serde_json::from_str(json).map_err(|error| wrong(&error))?;
        let pool = ThreadPoolBuilder::new().num_threads(threads).build()?;
        let fast = Kind::of(&spec).map(|kind| Fast {
            splitter: Splitter::new(kind),
            nfc: spec.pointer("/normalizer/type").is_some(),
            added: added_tokens(&spec),
            caches: (0..threads.max(1)).map(|_| Mutex::default()).collect(),
        });
        Ok(Self { tokenizer, fast, pool })
    }

    /// Whether texts take the faster way.
    #[must_use]
    pub fn is_fast(&self) -> bool {
        self.fast.is_some()
    }

    /// The ids of each text.
    ///
    /// # Errors
    /// The library's own, for a text that its model has no ids for.
    pub fn encode(&self, texts: &[&str]) -> Result<Encoded, Error> {
        let each: Vec<Vec<u32>> = self.pool.install(|| {
            texts.par_iter().with_max_len(1).map(|text| self.ids(text)).collect::<Result<_, _>>()
        })?;
        let mut encoded =
            Encoded { ids: Vec::with_capacity(each.iter().map(Vec::len).sum()), counts: vec![] };
        for ids in each {
            encoded.counts.push(ids.len());
            encoded.ids.extend(ids);
        }
        Ok(encoded)
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>, Error> {
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
fn added_tokens(spec: &Value) -> Vec<String> {
    let added = spec.get("added_tokens").and_then(Value::as_array);
    let plain = added.into_iter().flatten().filter(|token| token.get("special") != Some(&Value::Bool(true)));
    plain.filter_map(|token| Some(token.get("content")?.as_str()?.to_owned())).collect()
}
