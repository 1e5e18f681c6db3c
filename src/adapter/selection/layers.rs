//! A band of layers: the only ones whose norms are tuned.

use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::str::FromStr;

use serde::{de, Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{refusal, refuse, Error, Result};

/// A band of layers, counted from 0. In settings: `8..24` (from 8 on, without 24), `8..=23`, `8..`, `..24`.
///
/// ```
/// use ln_tuning::{AdapterOptions, Layers};
/// let options = AdapterOptions::default().layers(Layers::new(8..24));
/// assert_eq!("8..=23".parse::<Layers>()?, Layers::new(8..24));
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[doc(alias = "layers_to_transform")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layers {
    first: usize,
    /// Without one, the band reaches to the last layer.
    end: Option<usize>,
}

impl Layers {
    /// The band of this range. It is checked where it is used.
    pub fn new(range: impl RangeBounds<usize>) -> Self {
        let first = match range.start_bound() {
            Bound::Included(first) => *first,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => Some(last.saturating_add(1)),
            Bound::Excluded(end) => Some(*end),
            Bound::Unbounded => None,
        };
        Layers { first, end }
    }

    pub(super) fn has(self, layer: usize) -> bool {
        layer >= self.first && self.end.is_none_or(|end| layer < end)
    }

    /// Refuses a band without layers, or one that reaches beyond the last of `count`.
    pub(super) fn check(self, count: usize) -> Result<()> {
        let end = self.end.unwrap_or(count.max(self.first + 1));
        let there = format!("the model has {count} layers, counted from 0");
        if self.first >= end {
            refuse!(
                InvalidArgument,
                "`layers` is {self}, which holds none: {there}. Give the first one and the one behind the last, such as \
                 0..{count}"
            );
        }
        if end > count {
            refuse!(
                InvalidArgument,
                "`layers` is {self}, but {there}: give a band up to ..{count}"
            );
        }
        Ok(())
    }
}

/// The path before the first number in `path` that names follow, with its dot, and the number.
pub(super) fn layer_of(path: &str) -> Option<(&str, usize)> {
    let mut start = 0;
    for segment in path.split('.') {
        let end = start + segment.len();
        if let (Ok(number), true) = (segment.parse(), end < path.len()) {
            return Some((&path[..start], number));
        }
        start = end + 1;
    }
    None
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.end {
            Some(end) => write!(f, "{}..{end}", self.first),
            None => write!(f, "{}..", self.first),
        }
    }
}

impl FromStr for Layers {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.trim().split_once("..");
        let bound = |text: &str| match text.trim() {
            "" => Some(None),
            number => number.parse::<usize>().ok().map(Some),
        };
        let parse = |(first, rest): (&str, &str)| {
            let (last, inclusive) = match rest.strip_prefix('=') {
                Some(last) => (bound(last)?, true),
                None => (bound(rest)?, false),
            };
            if inclusive && last.is_none() {
                return None;
            }
            let end = last.map(|last| last.saturating_add(usize::from(inclusive)));
            Some(Layers { first: bound(first)?.unwrap_or(0), end })
        };
        parts.and_then(parse).ok_or_else(|| {
            refusal!(
                InvalidArgument,
                "`layers` is '{text}', expected a band of numbers from 0 on, such as 8..24 (without 24), 8..=23, 8.. or \
                 ..24"
            )
        })
    }
}

impl Serialize for Layers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Layers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = Layers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a band of layers such as 8..24")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Layers, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_are_read_as_they_are_written_and_nothing_else_is() {
        for (text, shown) in [
            ("8..24", "8..24"),
            ("8..=23", "8..24"),
            ("8..", "8.."),
            ("..24", "0..24"),
            ("..", "0.."),
            (" 1 .. 2 ", "1..2"),
        ] {
            let layers: Layers = text.parse().unwrap();
            assert_eq!(layers.to_string(), shown);
            assert_eq!(shown.parse::<Layers>().unwrap(), layers);
        }
        for text in ["", "8", "8-24", "8...24", "-1..3", "a..b", "8..=", "1..2..3", "1.5..2"] {
            let error = text.parse::<Layers>().unwrap_err().to_string();
            assert!(error.contains(&format!("'{text}', expected a band")), "{error}");
        }
        assert_eq!(layer_of("model.layers.12.mlp.3.norm"), Some(("model.layers.", 12)));
        assert_eq!((layer_of("norms.0"), layer_of("0.norm")), (None, Some(("", 0))));
    }
}
