//! Tensors of a payload, where the metadata describe them: `tensor_shapes`, at the top or under `custom`.
//!
//! The payload is then a u64 count and so many f32, in the order of the names as listed.

use std::{collections::HashMap, fmt};

use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    dtype::Dtype,
    v2::index::{Tensor, dims, wrong_name},
};

/// Bytes of the count before the values.
pub const COUNT: u64 = 8;
const KEY: &str = "tensor_shapes";

/// What the metadata say of the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Described {
    /// Nothing: the payload is bytes.
    Nothing,
    /// These tensors, sorted by name; offsets count from the payload's start.
    Tensors(Vec<Tensor>),
    /// Something that does not fit the payload, which is then bytes alone: why.
    Otherwise(String),
}

/// Look into the metadata for tensors of a payload of `size` bytes.
#[must_use]
pub fn describe(metadata: &str, size: u64) -> Described {
    let Some(raw) = member(metadata, KEY).or_else(|| member(member(metadata, "custom")?, KEY)) else {
        return Described::Nothing;
    };
    match serde_json::from_str::<Shapes>(raw) {
        Ok(shapes) => place(shapes.0, size).map_or_else(Described::Otherwise, Described::Tensors),
        Err(_) => Described::Otherwise(format!("{KEY} is no map from names to dims")),
    }
}

/// A member of an object: its text. Of duplicate keys the last counts.
fn member<'a>(object: &'a str, key: &str) -> Option<&'a str> {
    let members: HashMap<String, &'a RawValue> = serde_json::from_str(object).ok()?;
    members.get(key).map(|raw| raw.get())
}

fn place(shapes: Vec<(String, Vec<u64>)>, size: u64) -> std::result::Result<Vec<Tensor>, String> {
    let mut end = COUNT;
    let mut tensors = Vec::with_capacity(shapes.len());
    for (name, dims) in shapes {
        if let Some(what) = wrong_name(&name) {
            return Err(format!("a name in {KEY} {what}"));
        }
        let nbytes = Dtype::F32.nbytes(&dims);
        let (Some(nbytes), Some(next)) = (nbytes, nbytes.and_then(|nbytes| end.checked_add(nbytes))) else {
            return Err(format!("{KEY}: tensor {name:?} of dims {dims:?} is out of range"));
        };
        tensors.push(Tensor { name, dtype: Dtype::F32, dims, offset: end, nbytes });
        end = next;
    }
    if end != size {
        return Err(format!("{KEY} describes a payload of {end} bytes, but it has {size}"));
    }
    tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    match tensors.iter().zip(tensors.iter().skip(1)).find(|(a, b)| a.name == b.name) {
        Some((twice, _)) => Err(format!("{KEY} lists {:?} twice", twice.name)),
        None => Ok(tensors),
    }
}

/// Names and dims in the order in which they are listed.
struct Shapes(Vec<(String, Vec<u64>)>);

#[derive(Deserialize)]
struct Dims(#[serde(deserialize_with = "dims")] Vec<u64>);

impl<'de> Deserialize<'de> for Shapes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Shapes;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map from names to dims")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Shapes, A::Error> {
                let mut pairs = Vec::new();
                while let Some((name, Dims(dims))) = map.next_entry()? {
                    pairs.push((name, dims));
                }
                Ok(Shapes(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(metadata: &str, size: u64) -> Vec<(String, u64)> {
        match describe(metadata, size) {
            Described::Tensors(tensors) => tensors.into_iter().map(|t| (t.name, t.offset)).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_lie_in_the_order_in_which_the_names_are_listed() {
        let shapes = r#"{"tensor_shapes":{"b":[2,2],"a":[],"c":[0,7]}}"#;
        let expected = [("a".into(), 24), ("b".into(), 8), ("c".into(), 28)];
        assert_eq!(offsets(shapes, 28), expected);
        assert_eq!(offsets(&format!(r#"{{"custom":{shapes}}}"#), 28), expected);
    }

    #[test]
    fn what_does_not_fit_is_bytes_alone() {
        assert_eq!(describe(r#"{"custom":7}"#, 8), Described::Nothing);
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
            assert!(matches!(describe(&metadata, 16), Described::Otherwise(_)), "{shapes}");
        }
    }
}
