//! The tensors of a payload that the metadata describe with `tensor_shapes`, at the top level or under `custom`.
//!
//! Such a payload is a u64 count, then that many f32 values: those of each tensor in the order of the names.

use std::fmt;

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor},
};

use crate::{
    dtype::Dtype,
    index::{Index, Tensor, wrong_name},
    json::{dims, member, reason},
};

/// Bytes of the count before the values.
const COUNT: u64 = 8;
const KEY: &str = "tensor_shapes";

/// What the metadata describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Described {
    /// Nothing: the payload is only bytes.
    Nothing,
    /// The tensors of the payload.
    Tensors(Index),
    /// Shapes that do not fit the payload, and why. They may have another meaning for their writer, so that the payload
    /// is only bytes.
    Mismatch(String),
}

/// Find the tensors that the metadata describe, in a payload of `size` bytes that starts at offset `base`.
#[must_use]
pub fn describe(metadata: &str, size: u64, base: u64) -> Described {
    let Some(raw) = member(metadata, KEY).or_else(|| member(member(metadata, "custom")?, KEY)) else {
        return Described::Nothing;
    };
    tensors(raw, size, base).map_or_else(Described::Mismatch, Described::Tensors)
}

fn tensors(raw: &str, size: u64, base: u64) -> std::result::Result<Index, String> {
    if !raw.starts_with('{') {
        return Err(format!("{KEY} is not a map from names to dimensions"));
    }
    let mut shapes = Shapes { index: Index::counting_from(base), end: COUNT };
    let mut parser = serde_json::Deserializer::from_str(raw);
    (&mut shapes).deserialize(&mut parser).map_err(|error| format!("{KEY}: {}", reason(&error)))?;
    if shapes.end != size {
        return Err(format!("{KEY} describes a payload of {} bytes, but it has {size}", shapes.end));
    }
    match shapes.index.sort() {
        Some((name, _)) => Err(format!("{KEY} lists {name:?} twice")),
        None => Ok(shapes.index),
    }
}

/// Collects the tensors in the order of the map, which is that of their values.
struct Shapes {
    index: Index,
    /// Where the values of the next tensor start in the payload.
    end: u64,
}

#[derive(Deserialize)]
struct Dims(#[serde(deserialize_with = "dims")] Vec<u64>);

impl<'de> DeserializeSeed<'de> for &mut Shapes {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Shapes {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a map from names to dimensions")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((name, Dims(dims))) = map.next_entry::<String, _>()? {
            if let Some(what) = wrong_name(&name) {
                return Err(A::Error::custom(format_args!("a name {what}")));
            }
            let nbytes = Dtype::F32.nbytes(&dims);
            let next = nbytes.and_then(|nbytes| self.end.checked_add(nbytes));
            let (Some(nbytes), Some(next)) = (nbytes, next) else {
                return Err(A::Error::custom(format_args!(
                    "tensor {name:?} with dimensions {dims:?} is out of range"
                )));
            };
            self.index.push(&Tensor { name, dtype: Dtype::F32, dims, offset: self.end, nbytes });
            self.end = next;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(metadata: &str, size: u64) -> Vec<(String, u64)> {
        match describe(metadata, size, 0) {
            Described::Tensors(tensors) => tensors.entries().map(|t| (t.name.to_owned(), t.offset)).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_are_in_the_order_of_the_names() {
        let shapes = r#"{"tensor_shapes":{"b":[2,2],"a":[],"c":[0,7]}}"#;
        let expected = [("a".into(), 24), ("b".into(), 8), ("c".into(), 28)];
        assert_eq!(offsets(shapes, 28), expected);
        assert_eq!(offsets(&format!(r#"{{"custom":{shapes}}}"#), 28), expected);
    }

    #[test]
    fn shapes_that_do_not_fit_give_no_tensors() {
        assert_eq!(describe(r#"{"custom":7}"#, 8, 0), Described::Nothing);
        for shapes in [
            r#"{"a":[3]}"#,
            r#"{"a":[1],"a":[1]}"#,
            r#"{"":[2]}"#,
            r#"{"a":[-1]}"#,
            r#"{"a":2}"#,
            "[2]",
            "null",
            r#"{"a":[18446744073709551615,2]}"#,
            r#"{"a":[1,1,1,1,1,1,1,1,2]}"#,
        ] {
            let metadata = format!(r#"{{"tensor_shapes":{shapes}}}"#);
            assert!(matches!(describe(&metadata, 16, 0), Described::Mismatch(_)), "{shapes}");
        }
    }
}
