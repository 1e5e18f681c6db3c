//! A number for all that trains, or numbers for the norms at some places and a default.

use std::fmt;

use anyhow::{ensure, Result};
use ln_tuning::NormPlace;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// `0.01`, or `{default: 0.0, pre: 0.01}`.
#[derive(Debug, Clone, PartialEq)]
pub struct ByPlace {
    /// For all other norms and modules; `None` if only places have a number.
    default: Option<f64>,
    places: Vec<(NormPlace, f64)>,
}

impl ByPlace {
    /// The number of what has none of its own.
    pub fn default(&self) -> Option<f64> {
        self.default
    }

    pub fn places(&self) -> impl Iterator<Item = (NormPlace, f64)> + '_ {
        self.places.iter().copied()
    }

    /// The setting with all numbers `factor` times as large, to a digit.
    pub fn times(&self, factor: f64) -> String {
        let number = |number: f64| format!("{:.0e}", number * factor);
        let default = number(self.default.unwrap_or_default());
        if self.places.is_empty() {
            return default;
        }
        let place =
            |(place, own): &(NormPlace, f64)| format!(", {}: {}", place.name(), number(*own));
        format!("{{default: {default}{}}}", self.places.iter().map(place).collect::<String>())
    }

    /// Refuses a number for a place at which nothing trains, which would do nothing.
    pub fn check(&self, key: &str, there: impl Iterator<Item = NormPlace>) -> Result<()> {
        let there: Vec<NormPlace> = there.collect();
        for (place, _) in &self.places {
            let names: Vec<&str> = there.iter().map(|place| place.name()).collect();
            ensure!(
                there.contains(place),
                "'{key}' has a number for '{}', and no norm that trains is there; there are: {}",
                place.name(),
                names.join(", ")
            );
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for ByPlace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Numbers;
        impl<'de> Visitor<'de> for Numbers {
            type Value = ByPlace;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or numbers for 'default', ")?;
                let names = NormPlace::ALL.map(|place| format!("'{}'", place.name()));
                f.write_str(&names.join(", "))
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<ByPlace, E> {
                Ok(ByPlace { default: Some(number), places: Vec::new() })
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<ByPlace, E> {
                self.visit_f64(number as f64)
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<ByPlace, E> {
                self.visit_f64(number as f64)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ByPlace, A::Error> {
                let mut numbers = ByPlace { default: None, places: Vec::new() };
                while let Some(key) = map.next_key::<String>()? {
                    let place = NormPlace::ALL.into_iter().find(|place| place.name() == key);
                    match (place, key.as_str()) {
                        (Some(place), _) => numbers.places.push((place, map.next_value()?)),
                        (None, "default") => numbers.default = Some(map.next_value()?),
                        _ => {
                            let expected = &self as &dyn serde::de::Expected;
                            return Err(A::Error::custom(format!(
                                "'{key}' is no place of norms, expected {expected}"
                            )));
                        }
                    }
                }
                Ok(numbers)
            }
        }
        deserializer.deserialize_any(Numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_for_all_and_places_have_their_own() {
        let read = |text: &str| serde_yaml::from_str::<ByPlace>(text).map_err(|e| e.to_string());
        let number = |text| read(text).unwrap();
        assert_eq!((number("0.5").default(), number("2").default()), (Some(0.5), Some(2.)));
        let both = number("{default: 0.0, pre: 0.01, qk: 1}");
        assert_eq!(both.default(), Some(0.));
        assert_eq!(number("0.5").times(0.1), "5e-2");
        assert_eq!(number("{default: 0.02, pre: 0.01}").times(4.), "{default: 8e-2, pre: 4e-2}");
        assert_eq!(Vec::from_iter(both.places()), [(NormPlace::Pre, 0.01), (NormPlace::Qk, 1.)]);
        assert_eq!(number("{pre: 1}").default(), None);
        for (text, words) in [
            ("{before: 1}", "'before' is no place of norms, expected a number, or numbers for 'default', 'pre'"),
            ("fast", "expected a number, or numbers for 'default', 'pre', 'post', 'qk', 'final', 'embeddings'"),
            ("{pre: much}", "invalid type: string \"much\", expected f64"),
            ("[1]", "expected a number, or numbers"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        let error = both.check("optimizer.lr", [NormPlace::Pre, NormPlace::Final].into_iter());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("'optimizer.lr' has a number for 'qk'"), "{error}");
        assert!(error.contains("there are: pre, final"), "{error}");
    }
}
