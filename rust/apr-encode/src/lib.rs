//! Text to token ids, in parallel. The ids are those of the `tokenizers` library.
//!
//! Byte-level BPE with the pre-tokenizers of GPT-2, `SmolLM2`, Qwen2 and Qwen3, Llama 3 (`cl100k_base`) and
//! `o200k_base` has a fast path: the text is split by hand-written code without copies, a bounded cache of each
//! thread has the ids of pieces that occurred before, and new pieces are merged with a table of pairs.
//! Everything else goes through the library.
#![deny(unsafe_code)]

mod byte_level;
mod cache;
mod classes;
mod merge;
mod split;
mod stored;
mod vocabulary;
mod window;

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

pub use byte_level::{AddedToken, ByteLevel};
use cache::Cache;
use merge::letter;
use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};
use split::parts;
pub use stored::Stored;
use tokenizers::{Model, Tokenizer};
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
    tokenizer: Kept,
    /// Whether texts are normalized to Unicode's form NFC first.
    nfc: bool,
    /// One cache for each thread, so that no thread waits for another.
    caches: Vec<Mutex<Cache>>,
    pool: ThreadPool,
    stopped: AtomicBool,
}

/// What an encoder encodes with.
enum Kept {
    Fast(Arc<ByteLevel>),
    Library(Box<Tokenizer>),
}

impl Encoder {
    /// Create an encoder from the text of a `tokenizer.json`. `nfc` normalizes texts before the tokenizer
    /// does.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the library cannot read it, [`Error::Threads`] if no threads can be started.
    pub fn new(json: &str, threads: usize, nfc: bool) -> Result<Self, Error> {
        let tokenizer = match ByteLevel::read(json) {
            Some(tokenizer) => Kept::Fast(tokenizer.into()),
            None => Kept::Library(library(json)?.into()),
        };
        Self::with(tokenizer, threads, nfc)
    }

    /// Create an encoder from a tokenizer that was read before.
    ///
    /// # Errors
    /// [`Error::Threads`] if no threads can be started.
    pub fn from_byte_level(tokenizer: Arc<ByteLevel>, threads: usize, nfc: bool) -> Result<Self, Error> {
        Self::with(Kept::Fast(tokenizer), threads, nfc)
    }

    fn with(tokenizer: Kept, threads: usize, nfc: bool) -> Result<Self, Error> {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build()?;
        let caches = match tokenizer {
            Kept::Fast(_) => (0..threads.max(1)).map(|_| Mutex::default()).collect(),
            Kept::Library(_) => Vec::new(),
        };
        Ok(Self { tokenizer, nfc, caches, pool, stopped: AtomicBool::new(false) })
    }

    /// Whether texts take the fast path.
    #[must_use]
    pub fn is_fast(&self) -> bool {
        matches!(self.tokenizer, Kept::Fast(_))
    }

    /// Return the pieces that the fast path merges, for comparing them with the library's pre-tokenizer. `None`
    /// without a fast path.
    #[must_use]
    pub fn pieces<'a>(&self, text: &'a str) -> Option<Vec<&'a str>> {
        let Kept::Fast(tokenizer) = &self.tokenizer else { return None };
        let mut pieces = Vec::new();
        let mut start = 0;
        let split: Result<(), Infallible> = tokenizer.splitter.split(text, |end| {
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
        let parts = match &self.tokenizer {
            Kept::Fast(tokenizer) if tokenizer.in_parts => parts(&text, PART),
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
        let tokenizer = match &self.tokenizer {
            Kept::Library(tokenizer) => tokenizer,
            Kept::Fast(tokenizer) => match tokenizer.normalized(text).map_err(wrong)? {
                Some(text) => return self.ids_of_pieces(tokenizer, &text),
                None => tokenizer.library()?,
            },
        };
        let encoding = tokenizer.encode_fast(text, false);
        encoding.map(|encoding| encoding.get_ids().to_vec()).map_err(wrong)
    }

    fn ids_of_pieces(&self, tokenizer: &ByteLevel, text: &str) -> Result<Vec<u32>, Error> {
        let thread = rayon::current_thread_index().unwrap_or(0) % self.caches.len();
        let mut cache = self.caches[thread].lock().unwrap_or_else(PoisonError::into_inner);
        let library = |piece: &[u8], ids: &mut Vec<u32>| {
            let letters: String = piece.iter().map(|byte| letter(*byte)).collect();
            let tokens = tokenizer.library()?.get_model().tokenize(&letters);
            let tokens = tokens.map_err(|error| Error::Tokenizer(error.to_string()))?;
            ids.extend(tokens.into_iter().map(|token| token.id));
            Ok(())
        };
        let (bytes, merges) = (text.as_bytes(), Some(&tokenizer.merges));
        cache.clear();
        tokenizer.splitter.split(text, |end| cache.add(bytes, end, merges, library))?;
        cache.look_up(bytes, merges, library)?;
        Ok(cache.take())
    }
}

/// The library's tokenizer for the text of a `tokenizer.json`.
fn library(json: &str) -> Result<Tokenizer, Error> {
    let wrong = |error: tokenizers::Error| Error::Tokenizer(error.to_string());
    let mut tokenizer = Tokenizer::from_bytes(json).map_err(wrong)?;
    tokenizer.with_truncation(None).map_err(wrong)?;
    tokenizer.with_padding(None);
    tokenizer.set_encode_special_tokens(true);
    Ok(tokenizer)
}
