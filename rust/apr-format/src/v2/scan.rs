//! A quick look at JSON text: it says yes for certain, or leaves it to serde to say what is wrong and where.
//!
//! A tokenizer in the metadata is a megabyte or twelve, nearly all of it strings: looking for their ends takes
//! less time than decoding them (a third, where they are full of escapes), and no memory.

use crate::json::{MAX_DEPTH, MAX_VALUES};

/// Whether a text is one JSON value within the limits.
pub(crate) fn passes(text: &str) -> bool {
    let mut scan = Scan { bytes: text.as_bytes(), at: 0, values: 0 };
    scan.value(0).is_some() && scan.peek().is_none()
}

/// Bytes that do not stand in a string for themselves.
const SPECIAL: [bool; 256] = {
    let mut special = [false; 256];
    let mut control = 0;
    while control < 0x20 {
        special[control] = true;
        control += 1;
    }
    special[b'"' as usize] = true;
    special[b'\\' as usize] = true;
    special
};

/// Digits that any whole number may have.
const ALWAYS_IN_RANGE: usize = 18;

/// None stands for "not for certain".
struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    values: u32,
}

impl Scan<'_> {
    /// The byte after white space, which stays the next.
    fn peek(&mut self) -> Option<u8> {
        loop {
            let byte = *self.bytes.get(self.at)?;
            if !matches!(byte, b' ' | b'\n' | b'\t' | b'\r') {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    fn take(&mut self, expected: &[u8]) -> Option<()> {
        self.at += self.bytes.get(self.at..)?.starts_with(expected).then_some(expected.len())?;
        Some(())
    }

    /// Recursion ends at the depth that is allowed.
    fn value(&mut self, depth: u32) -> Option<()> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return None;
        }
        match self.peek()? {
            b'"' => self.string(),
            b'{' => self.parts(depth, b'}', Self::member),
            b'[' => self.parts(depth, b']', Self::value),
            b't' => self.take(b"true"),
            b'f' => self.take(b"false"),
            b'n' => self.take(b"null"),
            _ => self.number(),
        }
    }

    /// An object or array, from the bracket that opens it.
    fn parts(&mut self, depth: u32, end: u8, part: fn(&mut Self, u32) -> Option<()>) -> Option<()> {
        if depth >= MAX_DEPTH {
            return None;
        }
        self.at += 1;
        if self.peek()? != end {
            part(self, depth + 1)?;
            while self.peek()? == b',' {
                self.at += 1;
                part(self, depth + 1)?;
            }
        }
        self.take(&[end])
    }

    fn member(&mut self, depth: u32) -> Option<()> {
        if self.peek()? != b'"' {
            return None;
        }
        self.string()?;
        self.peek()?;
        self.take(b":")?;
        self.value(depth)
    }

    /// A string, from its quote.
    fn string(&mut self) -> Option<()> {
        self.at += 1;
        loop {
            let rest = self.bytes.get(self.at..)?;
            self.at += rest.iter().position(|&byte| SPECIAL[usize::from(byte)])?;
            match self.bytes.get(self.at)? {
                b'"' => return self.take(b"\""),
                b'\\' => self.escape()?,
                _ => return None,
            }
        }
    }

    fn escape(&mut self) -> Option<()> {
        let kind = *self.bytes.get(self.at + 1)?;
        self.at += 2;
        match kind {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(()),
            b'u' => match self.unit()? {
                0xd800..0xdc00 => {
                    self.take(b"\\u")?;
                    matches!(self.unit()?, 0xdc00..0xe000).then_some(())
                }
                0xdc00..0xe000 => None,
                _ => Some(()),
            },
            _ => None,
        }
    }

    /// The four hex digits of a UTF-16 unit.
    fn unit(&mut self) -> Option<u32> {
        let digits = self.bytes.get(self.at..)?.first_chunk::<4>()?;
        self.at += 4;
        digits.iter().try_fold(0, |unit, &digit| Some(unit * 16 + char::from(digit).to_digit(16)?))
    }

    fn number(&mut self) -> Option<()> {
        let rest = self.bytes.get(self.at..)?;
        let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
        let text = &rest[..rest.iter().position(|byte| !is_part(byte)).unwrap_or(rest.len())];
        self.at += text.len();
        let digits = text.strip_prefix(b"-").unwrap_or(text);
        let is_short = (1..=ALWAYS_IN_RANGE).contains(&digits.len());
        if is_short && digits.iter().all(u8::is_ascii_digit) && (digits.len() == 1 || digits[0] != b'0') {
            return Some(());
        }
        serde_json::from_slice::<f64>(text).ok().map(|_| ()) // fractions, exponents, what is out of range
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    const TEXTS: [&str; 5] = [
        r#" {"a": [1, -2.5e3, null, true, false, "é\u00e9\ud83d\ude00\"\\\/"], "b" : {} , "":[ ]}"#,
        r#"{"n":[0,-0,10,1e999,1e-999,123456789012345678901234567890,1.5,-1]}"#,
        r#""\ud800\u0041""#,
        "[[],{\"x\":\"\\n\"}]",
        "nullnull",
    ];

    #[test]
    fn it_takes_what_serde_takes_and_nothing_else() {
        let bytes = b"\"\\{}[]:,0123.-+eEtrunfa ud8D\n\x01\xc3";
        for text in TEXTS {
            for at in 0..=text.len() {
                for change in 0..=2 * bytes.len() {
                    let mut changed = text.as_bytes().to_vec();
                    match change.checked_sub(1) {
                        None => changed.truncate(at),
                        Some(with) if with < bytes.len() => changed.insert(at, bytes[with]),
                        Some(with) if at < text.len() => changed[at] = bytes[with - bytes.len()],
                        Some(_) => {}
                    }
                    let Ok(changed) = String::from_utf8(changed) else { continue };
                    assert_eq!(passes(&changed), json::decode(&changed).is_ok(), "{changed}");
                }
            }
        }
    }

    #[test]
    fn it_has_serdes_limits() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        let flat = |values: usize| format!("[{}0]", "0,".repeat(values - 2));
        for text in [nested(64), nested(65), flat(2_000_000), flat(2_000_001)] {
            assert_eq!(passes(&text), json::decode(&text).is_ok(), "{} bytes", text.len());
        }
    }
}
