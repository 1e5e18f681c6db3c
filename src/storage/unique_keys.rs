//! JSON and YAML objects that refuse a duplicate key.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The beginning of the error for a duplicate key.
pub(crate) const DUPLICATE: &str = "duplicate key";

/// An object without duplicate keys: most parsers keep the last one and drop the others silently.
pub(crate) struct Strict(pub(crate) Map<String, Value>);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Strict;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Strict, A::Error> {
                let mut map = Map::new();
                while let Some(key) = access.next_key::<String>()? {
                    if map.contains_key(&key) {
                        return Err(de::Error::custom(format!("{DUPLICATE}: '{key}'")));
                    }
                    let Any(value) = access.next_value()?;
                    map.insert(key, value);
                }
                Ok(Strict(map))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// Methods for values that JSON has.
macro_rules! values {
    ($($visit:ident: $value:ty),*) => {
        $(fn $visit<E>(self, v: $value) -> Result<Any, E> {
            Ok(Any(v.into()))
        })*
    };
}

/// Any value; numbers that JSON lacks (NaN, infinity) become text, so that an error can show them.
struct Any(Value);

impl<'de> Deserialize<'de> for Any {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;
        impl<'de> Visitor<'de> for AnyValue {
            type Value = Any;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a value")
            }
            values! { visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_str: &str }
            fn visit_f64<E>(self, v: f64) -> Result<Any, E> {
                let number = serde_json::Number::from_f64(v);
                Ok(Any(number.map_or_else(|| Value::from(v.to_string()), Value::Number)))
            }
            fn visit_unit<E>(self) -> Result<Any, E> {
                Ok(Any(Value::Null))
            }
            fn visit_none<E>(self) -> Result<Any, E> {
                Ok(Any(Value::Null))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Any, A::Error> {
                let mut items = Vec::new();
                while let Some(Any(item)) = access.next_element()? {
                    items.push(item);
                }
                Ok(Any(items.into()))
            }
            fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<Any, A::Error> {
                let Strict(map) =
                    Strict::deserialize(de::value::MapAccessDeserializer::new(access))?;
                Ok(Any(Value::Object(map)))
            }
        }
        deserializer.deserialize_any(AnyValue)
    }
}
