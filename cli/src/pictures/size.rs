//! Sizes of pictures as `preprocessor_config.json` writes them, and what they make of a picture's own.

use anyhow::{bail, ensure, Context, Result};
use serde_json::Value;

/// The size that pictures get. The first four are those of any processor, the last one is Idefics3's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    Exact {
        height: usize,
        width: usize,
    },
    /// The shorter edge; the proportions stay.
    Shortest(usize),
    /// The shorter edge, but the longer edge gets no longer than this.
    Between {
        shortest: usize,
        longest: usize,
    },
    /// As large as fits in here.
    Within {
        height: usize,
        width: usize,
    },
    /// The longer edge; the other one is even.
    Longest(usize),
}

/// The most pixels of a picture that is made larger or smaller, and of one of its edges before it is cut.
const MOST_PIXELS: usize = 1 << 27;

/// The longest edge that Idefics3 makes.
const MOST_EDGE: usize = 4096;

impl Size {
    /// A number is a square, or else the shorter edge.
    pub fn read(value: &Value, square: bool) -> Result<Self> {
        let number = |value: &Value| -> Result<usize> {
            let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
            number.filter(|number| (1..=1 << 20).contains(number)).context("expected 1 to 1048576")
        };
        Ok(match value {
            Value::Number(_) if square => {
                Size::Exact { height: number(value)?, width: number(value)? }
            }
            Value::Number(_) => Size::Shortest(number(value)?),
            Value::Array(pair) if pair.len() == 2 => {
                Size::Exact { height: number(&pair[0])?, width: number(&pair[1])? }
            }
            Value::Object(fields) => {
                let given = fields.iter().filter(|(_, value)| !value.is_null());
                let mut given: Vec<(&str, usize)> = given
                    .map(|(key, value)| Ok((key.as_str(), number(value)?)))
                    .collect::<Result<_>>()?;
                given.sort_unstable();
                match given[..] {
                    [("height", height), ("width", width)] => Size::Exact { height, width },
                    [("shortest_edge", edge)] => Size::Shortest(edge),
                    [("longest_edge", longest), ("shortest_edge", shortest)] => {
                        Size::Between { shortest, longest }
                    }
                    [("max_height", height), ("max_width", width)] => {
                        Size::Within { height, width }
                    }
                    [("longest_edge", edge)] => Size::Longest(edge),
                    _ => bail!(FORMS),
                }
            }
            _ => bail!(FORMS),
        })
    }

    /// The height and width of a picture of this height and width.
    pub fn of(self, height: usize, width: usize) -> Result<(usize, usize)> {
        let (long, short) = (height.max(width), height.min(width));
        let along = |new_long: usize, new_short: usize| {
            if width <= height {
                (new_long, new_short)
            } else {
                (new_short, new_long)
            }
        };
        let ratio = width as f64 / height as f64;
        let new = match self {
            Size::Exact { height, width } => (height, width),
            Size::Shortest(edge) => {
                along((edge as f64 * long as f64 / short as f64) as usize, edge)
            }
            Size::Between { shortest, longest } => {
                let (short, long, most) = (short as f64, long as f64, longest as f64);
                let mut raw = shortest as f64;
                let mut edge = shortest;
                if long / short * raw > most {
                    raw = most * short / long;
                    edge = raw.round_ties_even() as usize;
                }
                if edge as f64 == short {
                    (height, width)
                } else {
                    along((raw * long / short) as usize, edge)
                }
            }
            Size::Within { height: most_high, width: most_wide } => {
                let (high, wide) = (height as f64, width as f64);
                let scale = (most_high as f64 / high).min(most_wide as f64 / wide);
                ((high * scale) as usize, (wide * scale) as usize)
            }
            Size::Longest(edge) => {
                let even = |length: f64| (length as usize).next_multiple_of(2).max(1);
                let (high, wide) = if width >= height {
                    (even(edge as f64 / ratio), edge)
                } else {
                    (edge, even(edge as f64 * ratio))
                };
                below(high, wide, MOST_EDGE)
            }
        };
        let (high, wide) = new;
        ensure!(
            (1..=MOST_PIXELS).contains(&high) && (1..=MOST_PIXELS).contains(&wide),
            "'size' of the image processor makes {wide} x {high} pixels of {width} x {height}"
        );
        Ok(new)
    }
}

/// Refuses a picture that would fill the memory.
pub fn check_area(height: usize, width: usize) -> Result<()> {
    ensure!(
        height.checked_mul(width).is_some_and(|pixels| pixels <= MOST_PIXELS),
        "the image processor makes {width} x {height} pixels of the picture, expected at most {MOST_PIXELS}: cut it first"
    );
    Ok(())
}

/// The forms that a size may have, for errors.
const FORMS: &str =
    "expected a number, [height, width], or an object with 'height' and 'width', 'shortest_edge', \
                     'shortest_edge' and 'longest_edge', or 'max_height' and 'max_width'";

/// A picture whose longer edge is at most this long.
fn below(height: usize, width: usize, most: usize) -> (usize, usize) {
    let ratio = width as f64 / height as f64;
    if width >= height && width > most {
        (((most as f64 / ratio) as usize).max(1), most)
    } else if height > width && height > most {
        (most, ((most as f64 * ratio) as usize).max(1))
    } else {
        (height, width)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_size_in_any_form_is_understood_and_others_are_refused() {
        let exact = Size::Exact { height: 3, width: 4 };
        for (value, square, size) in [
            (json!(3), true, Size::Exact { height: 3, width: 3 }),
            (json!(3), false, Size::Shortest(3)),
            (json!([3, 4]), true, exact),
            (json!({"width": 4, "height": 3, "longest_edge": null}), false, exact),
            (json!({"shortest_edge": 3}), true, Size::Shortest(3)),
            (json!({"longest_edge": 3}), true, Size::Longest(3)),
            (
                json!({"shortest_edge": 3, "longest_edge": 4}),
                true,
                Size::Between { shortest: 3, longest: 4 },
            ),
            (json!({"max_height": 3, "max_width": 4}), true, Size::Within { height: 3, width: 4 }),
        ] {
            assert_eq!(Size::read(&value, square).unwrap(), size);
        }
        for value in [
            json!({"height": 3}),
            json!({"min_pixels": 3, "max_pixels": 9}),
            json!({"height": 3, "width": 4, "shortest_edge": 3}),
            json!([3]),
            json!("3"),
            json!(0),
            json!(-3),
            json!(2.5),
            json!({"height": 3, "width": 0}),
            json!({}),
        ] {
            assert!(Size::read(&value, true).is_err(), "{value}");
        }
    }

    proptest! {
        /// Never a panic, and never pixels without an end.
        #[test]
        fn any_picture_gets_the_size_that_was_asked_for_or_an_error(
            height in 1..100_000_usize, width in 1..100_000_usize, a in 1..3000_usize, b in 1..3000_usize,
        ) {
            if let Ok((high, wide)) = Size::Shortest(a).of(height, width) {
                prop_assert_eq!(high.min(wide), a);
            }
            if let Ok((high, wide)) = (Size::Between { shortest: a, longest: b }).of(height, width) {
                prop_assert!(high.max(wide) <= a.max(b).max(1) && high.min(wide) <= a);
            }
            if let Ok((high, wide)) = (Size::Within { height: a, width: b }).of(height, width) {
                prop_assert!(high <= a && wide <= b);
            }
            let (high, wide) = Size::Longest(a).of(height, width).unwrap();
            prop_assert!((a..=a + 1).contains(&high.max(wide)));
        }
    }
}
