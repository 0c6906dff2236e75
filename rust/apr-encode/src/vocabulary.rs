//! The tokens of a vocabulary, found by text and by id.

use std::fmt;

use hashbrown::hash_table::{Entry, HashTable};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

use crate::{byte_level::AddedToken, cache::hash};

/// Tokens with their ids. No two have the same text or the same id.
#[derive(Default)]
pub(crate) struct Vocabulary {
    /// The texts of all tokens, one after another.
    texts: String,
    /// In the order of ids.
    tokens: Vec<Token>,
    /// Positions in `tokens`, by text.
    by_text: HashTable<u32>,
}

struct Token {
    id: u32,
    start: u32,
    length: u32,
}

impl Vocabulary {
    /// The number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(crate) fn id(&self, text: &str) -> Option<u32> {
        let found = self.by_text.find(hash(text.as_bytes()), |at| self.text(*at) == text)?;
        Some(self.tokens[*found as usize].id)
    }

    /// The id of two tokens joined. In most files it is one more than that of the merge before, `last`, where the
    /// search takes no time.
    pub(crate) fn id_of_both(&self, left: &str, right: &str, last: u32, both: &mut String) -> Option<u32> {
        let next = last.wrapping_add(1);
        let is_next = |token: &str| token.strip_prefix(left) == Some(right);
        if self.token(next).is_some_and(is_next) {
            return Some(next);
        }
        both.clear();
        both.push_str(left);
        both.push_str(right);
        self.id(both)
    }

    pub(crate) fn token(&self, id: u32) -> Option<&str> {
        // Most vocabularies have no gaps.
        let at = match self.tokens.get(id as usize) {
            Some(token) if token.id == id => id as usize,
            _ => self.tokens.binary_search_by_key(&id, |token| token.id).ok()?,
        };
        Some(self.text(u32::try_from(at).ok()?))
    }

    pub(crate) fn highest_id(&self) -> Option<u32> {
        self.tokens.last().map(|token| token.id)
    }

    /// All tokens in the order of their ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.tokens.iter().map(|token| (self.slice(token), token.id))
    }

    /// Return the vocabulary with the tokens that a file adds; `None` if the library would not give each of them
    /// the id that the file names, or if two tokens have the same id.
    pub(crate) fn with_added(mut self, added: &[AddedToken]) -> Option<Self> {
        let count = self.tokens.len();
        let mut next = u32::try_from(count).ok()?;
        for (n, token) in added.iter().enumerate() {
            let is_repeated = added[..n].iter().any(|other| other.content == token.content);
            let known = self.id(&token.content);
            if token.content.is_empty() || is_repeated || known.unwrap_or(next) != token.id {
                return None;
            }
            if known.is_none() {
                next += 1;
                self.push(&token.content, token.id)?;
            }
        }
        // Most files list their tokens in the order of ids.
        let is_sorted = self.tokens.is_sorted_by_key(|token| token.id);
        if !is_sorted {
            self.tokens.sort_by_key(|token| token.id);
        }
        if self.tokens.windows(2).any(|two| two[0].id == two[1].id) {
            return None;
        }
        self.index(if is_sorted { count } else { 0 })
    }

    /// Make the tokens from one on be found by text. `None` if two have the same text.
    fn index(mut self, from: usize) -> Option<Self> {
        let mut by_text = std::mem::take(&mut self.by_text);
        if from == 0 {
            by_text = HashTable::with_capacity(self.tokens.len());
        }
        for at in u32::try_from(from).ok()?..u32::try_from(self.tokens.len()).ok()? {
            let text = self.text(at);
            let same = |other: &u32| self.text(*other) == text;
            match by_text.entry(hash(text.as_bytes()), same, |other| hash(self.text(*other).as_bytes())) {
                Entry::Occupied(_) => return None,
                Entry::Vacant(place) => place.insert(at),
            };
        }
        self.by_text = by_text;
        Some(self)
    }

    fn push(&mut self, text: &str, id: u32) -> Option<()> {
        let (start, length) = (u32::try_from(self.texts.len()).ok()?, u32::try_from(text.len()).ok()?);
        // The ends too.
        start.checked_add(length)?;
        self.tokens.push(Token { id, start, length });
        self.texts.push_str(text);
        Some(())
    }

    fn text(&self, at: u32) -> &str {
        self.slice(&self.tokens[at as usize])
    }

    fn slice(&self, token: &Token) -> &str {
        &self.texts[token.start as usize..(token.start + token.length) as usize]
    }
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tokens;

        impl<'de> Visitor<'de> for Tokens {
            type Value = Vocabulary;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("an object of tokens and ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
                let wrong = || serde::de::Error::custom("not a vocabulary");
                let mut vocabulary = Vocabulary::default();
                while let Some(text) = map.next_key::<Text<'de>>()? {
                    vocabulary.push(&text.0, map.next_value()?).ok_or_else(wrong)?;
                }
                vocabulary.index(0).ok_or_else(wrong)
            }
        }

        deserializer.deserialize_map(Tokens)
    }
}

/// A string of JSON, borrowed if it has no escape.
#[derive(Deserialize)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) std::borrow::Cow<'a, str>);
