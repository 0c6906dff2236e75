//! The metadata: a `MessagePack` map, or JSON from some writers, translated to the text of a JSON object.
//!
//! Values that JSON cannot express become what the JSON library of the writers makes of them: NaN and infinities
//! become null, bytes become an array of numbers.

use rmp::{Marker, decode};

use crate::{
    error::{Part, Result, Rule},
    json::{self, MAX_DEPTH, MAX_READ, MAX_VALUES},
};

/// Check the metadata and return them as JSON text. `start` is their offset in the file.
///
/// # Errors
/// [`Rule::Malformed`] with the offset of the first invalid value.
pub fn read(bytes: Vec<u8>, start: u64) -> Result<String> {
    // In MessagePack this byte is a number, so it cannot start a map.
    if bytes.first() == Some(&b'{') {
        return json::check(bytes, start);
    }
    let mut reader = Reader { bytes: &bytes, at: 0, values: 0, text: Vec::new() };
    let wrong = |(at, what): (usize, String)| Rule::Malformed { what }.at(Part::Metadata, start + at as u64);
    reader.whole().map_err(wrong)?;
    String::from_utf8(reader.text).map_err(|_| wrong((0, "not UTF-8".into())))
}

/// The error is an offset in the metadata and what is wrong there.
type Outcome<T = ()> = std::result::Result<T, (usize, String)>;

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The number of values so far.
    values: u32,
    /// The JSON text so far.
    text: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn whole(&mut self) -> Outcome {
        if !matches!(self.marker()?, Marker::FixMap(_) | Marker::Map16 | Marker::Map32) {
            return Err((0, "not a MessagePack map or a JSON object".into()));
        }
        self.value(0)?;
        match self.bytes.len() - self.at {
            0 => Ok(()),
            rest => Err((self.at, format!("{rest} bytes after the end of the map"))),
        }
    }

    /// Return the marker of the next value without consuming it.
    fn marker(&self) -> Outcome<Marker> {
        self.bytes.get(self.at).map(|byte| Marker::from_u8(*byte)).ok_or_else(|| self.cut_off())
    }

    fn cut_off(&self) -> (usize, String) {
        (self.at, "the metadata ends in the middle of a value".into())
    }

    /// Decode the next value with `rmp` and move past it.
    fn decode<T, E>(
        &mut self,
        decode: impl FnOnce(&mut &'a [u8]) -> std::result::Result<T, E>,
    ) -> Outcome<T> {
        let mut rest = self.bytes.get(self.at..).unwrap_or_default();
        let value = decode(&mut rest).map_err(|_| self.cut_off())?;
        self.at = self.bytes.len() - rest.len();
        Ok(value)
    }

    fn take(&mut self, size: u32) -> Outcome<&'a [u8]> {
        let end = usize::try_from(size).ok().and_then(|size| self.at.checked_add(size));
        let bytes = end.and_then(|end| self.bytes.get(self.at..end)).ok_or_else(|| self.cut_off())?;
        self.at += bytes.len();
        Ok(bytes)
    }

    /// Translate one value to JSON. The recursion is at most `MAX_DEPTH` deep.
    fn value(&mut self, depth: u32) -> Outcome {
        let start = self.at;
        self.count(1)?;
        match self.marker()? {
            Marker::Null => {
                self.decode(decode::read_nil)?;
                self.json(&())
            }
            Marker::True | Marker::False => {
                let value = self.decode(decode::read_bool)?;
                self.json(&value)
            }
            Marker::F32 => {
                let value = self.decode(decode::read_f32)?;
                self.json(&f64::from(value))
            }
            Marker::F64 => {
                let value = self.decode(decode::read_f64)?;
                self.json(&value)
            }
            Marker::U64 => {
                let value = self.decode(decode::read_u64)?;
                self.json(&value)
            }
            Marker::FixPos(_)
            | Marker::FixNeg(_)
            | Marker::U8
            | Marker::U16
            | Marker::U32
            | Marker::I8
            | Marker::I16
            | Marker::I32
            | Marker::I64 => {
                let value: i64 = self.decode(decode::read_int)?;
                self.json(&value)
            }
            Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => self.string(),
            Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => self.binary(),
            Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => self.array(depth),
            Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => self.map(depth),
            _ => Err((start, "a MessagePack extension, which metadata must not contain".into())),
        }
    }

    fn check_depth(&self, depth: u32) -> Outcome {
        if depth >= MAX_DEPTH {
            return Err((self.at, format!("nested deeper than {MAX_DEPTH}")));
        }
        Ok(())
    }

    fn count(&mut self, values: u32) -> Outcome {
        self.values = self.values.saturating_add(values);
        if self.values > MAX_VALUES {
            return Err((self.at, format!("more than {MAX_VALUES} values")));
        }
        Ok(())
    }

    /// Write a scalar or a string. `serde_json` writes floats with the fewest digits that parse to the same value, and
    /// NaN and infinities as null.
    fn json(&mut self, value: &impl serde::Serialize) -> Outcome {
        serde_json::to_writer(&mut self.text, value).map_err(|error| (self.at, error.to_string()))
    }

    fn string(&mut self) -> Outcome {
        let start = self.at;
        let size = self.decode(decode::read_str_len)?;
        let bytes = self.take(size)?;
        let text = std::str::from_utf8(bytes).map_err(|_| (start, "a string that is not UTF-8".into()))?;
        let escaped = text.bytes().map(|byte| match byte {
            0..b' ' => 6, // \u0000
            b'"' | b'\\' => 2,
            _ => 1,
        });
        let most = escaped.sum::<usize>() + 2; // the quotes
        if (self.text.len() + most) as u64 > MAX_READ {
            return Err((start, "the metadata is larger than 64 MiB as JSON".into()));
        }
        // Also for the brackets that may follow: one byte too few would make the vector double its capacity.
        self.text.reserve(most + MAX_DEPTH as usize + 1);
        self.json(&text)
    }

    fn binary(&mut self) -> Outcome {
        let size = self.decode(decode::read_bin_len)?;
        self.count(size)?;
        let bytes = self.take(size)?;
        self.text.push(b'[');
        for (i, byte) in bytes.iter().enumerate() {
            self.comma(i == 0);
            self.json(byte)?;
        }
        self.text.push(b']');
        Ok(())
    }

    fn array(&mut self, depth: u32) -> Outcome {
        self.check_depth(depth)?;
        let size = self.decode(decode::read_array_len)?;
        self.text.push(b'[');
        for i in 0..size {
            self.comma(i == 0);
            self.value(depth + 1)?;
        }
        self.text.push(b']');
        Ok(())
    }

    fn map(&mut self, depth: u32) -> Outcome {
        self.check_depth(depth)?;
        let size = self.decode(decode::read_map_len)?;
        self.text.push(b'{');
        for i in 0..size {
            self.comma(i == 0);
            match self.marker()? {
                Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => self.string()?,
                _ => return Err((self.at, "a key that is not a string".into())),
            }
            self.text.push(b':');
            self.value(depth + 1)?;
        }
        self.text.push(b'}');
        Ok(())
    }

    fn comma(&mut self, is_first: bool) {
        if !is_first {
            self.text.push(b',');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> std::result::Result<String, Option<u64>> {
        read(bytes.to_vec(), 32).map_err(|error| error.offset())
    }

    #[test]
    fn each_kind_of_value_is_translated() {
        let values: [(&[u8], &str); 12] = [
            (b"\xc0", "null"),
            (b"\xc3", "true"),
            (b"\x07", "7"),
            (b"\xff", "-1"),
            (b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", "18446744073709551615"),
            (b"\xd3\x80\0\0\0\0\0\0\0", "-9223372036854775808"),
            (b"\xca\x3e\x80\0\0", "0.25"),
            (b"\xcb\x7f\xf8\0\0\0\0\0\0", "null"),
            (b"\xa2\"\x01", r#""\"\u0001""#),
            (b"\xc4\x02\x01\xff", "[1,255]"),
            (b"\x92\x01\x90", "[1,[]]"),
            (b"\x81\xa1b\x80", r#"{"b":{}}"#),
        ];
        for (bytes, json) in values {
            assert_eq!(text(&[b"\x81\xa1a", bytes].concat()).unwrap(), format!("{{\"a\":{json}}}"));
        }
        assert_eq!(text(b"{\"a\": 1}").unwrap(), "{\"a\": 1}");
    }

    #[test]
    fn errors_have_the_offset_of_the_invalid_value() {
        for (bytes, offset) in [
            (&b""[..], 32),
            (b"\x90", 32),
            (b"\x80\x80", 33),
            (b"\x81\x01\x01", 33),
            (b"\x81\xa1a", 35),
            (b"\x81\xa1\xff\x01", 33),
            (b"\x81\xa1a\xd4\x01\x01", 35),
            (b"\x81\xa1a\xc1", 35),
            (b"\x81\xa1a\xdb\xff\xff\xff\xff", 40),
            (b"\x81\xa1a\xdd\xff\xff\xff\xff", 40),
            (b"{\"a\":}", 37),
        ] {
            assert_eq!(text(bytes), Err(Some(offset)), "{bytes:02x?}");
        }
    }

    #[test]
    fn nesting_and_number_of_values_are_limited() {
        let nested = |depth: usize| [b"\x81\xa1a", vec![0x91; depth - 1].as_slice(), b"\x01"].concat();
        assert!(text(&nested(64)).is_ok());
        assert_eq!(text(&nested(65)), Err(Some(32 + 3 + 63)));
        let flat = |values: u32| {
            let size = values.to_be_bytes();
            [b"\x81\xa1a\xdd", &size[..], &vec![1; values as usize]].concat()
        };
        assert!(text(&flat(MAX_VALUES - 2)).is_ok());
        assert!(text(&flat(MAX_VALUES - 1)).is_err());
    }
}
