//! Check JSON without building its values, so that a hostile file costs no memory.

use std::fmt;

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    error::{Part, Result, Rule},
    index::MAX_DIMS,
};

/// The largest metadata that are read, in bytes.
pub const MAX_READ: u64 = 64 << 20;
/// The largest metadata that are written, in bytes.
pub const MAX_WRITE: usize = 16 << 20;
/// The deepest nesting of objects and arrays.
pub const MAX_DEPTH: u32 = 64;
/// The largest number of values. A vocabulary with its merges has about 300 000.
pub const MAX_VALUES: u32 = 2_000_000;

/// Check that the bytes are one JSON object within the limits, and return them as text.
///
/// `start` is the place of the bytes in the file.
///
/// # Errors
/// [`Rule::Malformed`] with the offset of the first wrong byte.
pub fn check(bytes: Vec<u8>, start: u64) -> Result<String> {
    let text = String::from_utf8(bytes).map_err(|error| {
        let offset = start + error.utf8_error().valid_up_to() as u64;
        Rule::malformed("invalid UTF-8").at(Part::Metadata, offset)
    })?;
    check_object(&text, start)?;
    Ok(text)
}

/// Check that a text is one JSON object within the limits.
///
/// Lone surrogates and numbers beyond the range of a double are refused, so that every JSON parser reads what passes.
///
/// # Errors
/// [`Rule::Malformed`] with the offset of the first wrong byte.
pub fn check_object(text: &str, start: u64) -> Result<()> {
    let wrong = |(at, what): (usize, String)| Rule::Malformed { what }.at(Part::Metadata, start + at as u64);
    let first = text.bytes().position(|byte| !byte.is_ascii_whitespace());
    if let Some(at) = first.filter(|&at| text.as_bytes().get(at) != Some(&b'{')) {
        return Err(wrong((at, "not a JSON object (it must start with '{')".into())));
    }
    walk(text).map_err(wrong)
}

/// Check that a text is one JSON value within the limits. The error is the first wrong byte and what is wrong there.
pub(crate) fn walk(text: &str) -> std::result::Result<(), (usize, String)> {
    let mut values = 0;
    let mut parser = serde_json::Deserializer::from_str(text);
    // The visitor counts depth itself; the parser's own limit of 128 never comes into play.
    let walk = Value { depth: 0, values: &mut values }.deserialize(&mut parser);
    walk.and_then(|()| parser.end()).map_err(|error| located(text, &error))
}

/// Return the byte of an error of serde, and its message.
pub(crate) fn located(text: &str, error: &serde_json::Error) -> (usize, String) {
    (position(text, error.line(), error.column()), reason(error))
}

/// Return the message of serde without its "at line …", which the byte offset replaces.
pub(crate) fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(reason, _)| reason.to_owned())
}

/// Return the byte offset of a line and column, both counted from 1.
fn position(text: &str, line: usize, column: usize) -> usize {
    let before = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum::<usize>();
    (before + column.saturating_sub(1)).min(text.len())
}

/// Visits one value and keeps only the number of values.
struct Value<'a> {
    depth: u32,
    values: &'a mut u32,
}

impl Value<'_> {
    fn inner(&mut self) -> Value<'_> {
        Value { depth: self.depth + 1, values: self.values }
    }

    fn enter<E: serde::de::Error>(&self) -> std::result::Result<(), E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format_args!("nested deeper than {MAX_DEPTH}")));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        *self.values += 1;
        if *self.values > MAX_VALUES {
            return Err(D::Error::custom(format_args!("more than {MAX_VALUES} values")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> std::result::Result<(), A::Error> {
        self.enter()?;
        while items.next_element_seed(self.inner())?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> std::result::Result<(), A::Error> {
        self.enter()?;
        while entries.next_key_seed(Key)?.is_some() {
            entries.next_value_seed(self.inner())?;
        }
        Ok(())
    }
}

/// Reads a key as a string, so that its escapes are checked.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E>(self, _: &str) -> std::result::Result<(), E> {
        Ok(())
    }
}

/// Return the text of one value of an object. Of a repeated key, the last value counts.
pub(crate) fn member<'a>(object: &'a str, key: &str) -> Option<&'a str> {
    let mut parser = serde_json::Deserializer::from_str(object);
    Member(key).deserialize(&mut parser).ok()?.map(RawValue::get)
}

struct Member<'k>(&'k str);

impl<'de> DeserializeSeed<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut value = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == self.0 {
                value = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(value)
    }
}

/// A whole number.
struct Number(u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        number(deserializer).map(Self)
    }
}

/// Read a whole number. The error for a string does not quote it, because it may be as long as the file.
pub(crate) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<u64, D::Error> {
    struct Digits;
    impl Visitor<'_> for Digits {
        type Value = u64;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a whole number")
        }

        fn visit_u64<E>(self, number: u64) -> std::result::Result<u64, E> {
            Ok(number)
        }

        fn visit_i64<E: serde::de::Error>(self, number: i64) -> std::result::Result<u64, E> {
            Err(E::invalid_value(Unexpected::Signed(number), &self))
        }

        fn visit_str<E: serde::de::Error>(self, _: &str) -> std::result::Result<u64, E> {
            Err(E::custom("a string, not a whole number"))
        }
    }
    // Not deserialize_u64: its error would quote a string.
    deserializer.deserialize_any(Digits)
}

/// Read at most eight dimensions. A longer list is refused before it is in memory.
pub(crate) fn dims<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<u64>, D::Error> {
    struct Dims;
    impl<'de> Visitor<'de> for Dims {
        type Value = Vec<u64>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a list of dimensions")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Vec<u64>, A::Error> {
            let mut dims = Vec::new();
            while let Some(Number(dim)) = items.next_element()? {
                if dims.len() == usize::from(MAX_DIMS) {
                    return Err(A::Error::custom(format_args!("more than {MAX_DIMS} dimensions")));
                }
                dims.push(dim);
            }
            Ok(dims)
        }

        fn visit_str<E: serde::de::Error>(self, _: &str) -> std::result::Result<Vec<u64>, E> {
            Err(E::custom("a string, not a list of dimensions"))
        }
    }
    // Not deserialize_seq: its error would quote a string.
    deserializer.deserialize_any(Dims)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset_of_error(text: &str) -> Option<u64> {
        check(text.as_bytes().to_vec(), 64).err().and_then(|error| error.offset())
    }

    #[test]
    fn objects_pass_and_keep_their_text() {
        for text in ["{}", " {\"a\": [1, -2.5e3, null, true, \"é\\u00e9\\ud83d\\ude00\"], \"a\": {}}\n"] {
            assert_eq!(check(text.as_bytes().to_vec(), 64).unwrap(), text);
        }
    }

    #[test]
    fn the_first_wrong_byte_is_named() {
        assert_eq!(offset_of_error("[1]"), Some(64));
        assert_eq!(offset_of_error(" 7"), Some(65));
        assert_eq!(offset_of_error("{} {}"), Some(67));
        assert_eq!(check(b"{\"a\":\"\xff\"}".to_vec(), 64).unwrap_err().offset(), Some(70));
    }

    #[test]
    fn values_that_parsers_disagree_about_are_refused() {
        for text in
            ["", "{\"a\":NaN}", "{\"a\":-Infinity}", "{\"a\":1e999}", r#"{"a":"\ud800"}"#, r#"{"\udc00":1}"#]
        {
            assert!(offset_of_error(text).is_some(), "{text}");
        }
    }

    #[test]
    fn nesting_and_number_of_values_are_bounded() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert_eq!(offset_of_error(&nested(64)), None);
        assert!(offset_of_error(&nested(65)).is_some());
        let flat = |values: usize| format!("{{\"a\":[{}0]}}", "0,".repeat(values - 3));
        assert_eq!(offset_of_error(&flat(2_000_000)), None);
        assert!(offset_of_error(&flat(2_000_001)).is_some());
    }
}
