//! Texts as a corpus stores them: files, lines of JSONL, values of a column.

use std::{borrow::Cow, collections::HashMap, fs, path::Path};

use serde_json::value::RawValue;

/// Where a text of a corpus is stored. It may turn out not to be text.
#[derive(Debug, Clone, Copy)]
pub enum Stored<'a> {
    /// A string.
    Text(&'a str),
    /// A file with one text.
    File(&'a Path),
    /// A JSON object in UTF-8, and the key of the text in it.
    Line(&'a [u8], &'a str),
    /// A value of a column; `None` for null.
    Value(Option<&'a [u8]>),
}

impl<'a> Stored<'a> {
    /// Return the text. `None` for a file that cannot be read, for invalid UTF-8, and for a line without the
    /// text.
    pub(crate) fn text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(text.into()),
            Self::File(path) => String::from_utf8(fs::read(path).ok()?).ok().map(Cow::Owned),
            Self::Line(line, field) => member(std::str::from_utf8(line).ok()?, field),
            Self::Value(value) => std::str::from_utf8(value?).ok().map(Cow::Borrowed),
        }
    }
}

/// Return the text under a key of a JSON object. Of duplicate keys the last one counts, as in Python.
fn member<'a>(line: &'a str, field: &str) -> Option<Cow<'a, str>> {
    let members: HashMap<String, &RawValue> = serde_json::from_str(line).ok()?;
    let value = members.get(field)?;
    let inner = value.get().strip_prefix('"')?.strip_suffix('"')?;
    // Without an escape, the JSON string is the text: most lines are copied no further.
    if inner.contains('\\') {
        return serde_json::from_str(value.get()).ok().map(Cow::Owned);
    }
    Some(inner.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_gives_the_text_under_its_key() {
        let of = |line: &'static str| Stored::Line(line.as_bytes(), "t").text();
        assert_eq!(of(r#" {"a": [1, {"t": 2}], "t": "x"} "#).as_deref(), Some("x"));
        assert_eq!(of(r#"{"t": "a\n\u00e9\ud83d\ude00\"" }"#).as_deref(), Some("a\n\u{e9}\u{1f600}\""));
        assert_eq!(of(r#"{"t": "first", "t": "last"}"#).as_deref(), Some("last"));
        assert_eq!(of(r#"{"\u0074": ""}"#).as_deref(), Some(""));
        for none in ["", "[]", "3", r#"{"t": 3}"#, r#"{"u": "x"}"#, r#"{"t": "\ud800"}"#, r#"{"t": "x"} y"#] {
            assert_eq!(of(none), None, "{none}");
        }
        assert_eq!(Stored::Line(b"{\"t\": \"\xff\"}", "t").text(), None);
    }

    #[test]
    fn bytes_that_are_not_utf8_and_missing_files_are_not_text() {
        assert_eq!(Stored::Value(Some(b"x")).text().as_deref(), Some("x"));
        assert_eq!(Stored::Value(Some(b"\xff")).text(), None);
        assert_eq!(Stored::Value(None).text(), None);
        assert_eq!(Stored::File(Path::new("/nowhere")).text(), None);
    }
}
