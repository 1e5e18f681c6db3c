//! YAML within bounds: a short text can stand for gigabytes, or keep a parser busy for hours.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error, IgnoredAny, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};

/// The longest text, in bytes.
const LENGTH: usize = 1 << 20;

/// The most brackets that open. The parser's work grows with the square of those that are open.
const BRACKETS: usize = 4096;

/// The largest content once the aliases (`*name`) are replaced, in bytes; a value counts as 16 more.
const CONTENT: usize = 8 << 20;

/// Reads a configuration or settings; `serde_yaml::from_str` within bounds.
///
/// # Errors
/// As `serde_yaml::from_str`; for text that is too long, nested too deeply, or too large once its aliases are replaced.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, serde_yaml::Error> {
    let refused = |message: String| Err(serde_yaml::Error::custom(message));
    if text.len() > LENGTH {
        return refused(format!("the text has {} bytes, expected at most {LENGTH}", text.len()));
    }
    let brackets = text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
    if brackets > BRACKETS {
        return refused(format!("{brackets} brackets open, expected at most {BRACKETS}"));
    }
    // Without aliases the content is no larger than the text.
    if text.contains('&') {
        let left = Cell::new(CONTENT);
        match Content(&left).deserialize(serde_yaml::Deserializer::from_str(text)) {
            Err(error) if left.get() == 0 => return Err(error),
            _ => {}
        }
    }
    serde_yaml::from_str(text)
}

/// Counts what a document holds, and keeps nothing. The cell has what may still come.
struct Content<'a>(&'a Cell<usize>);

impl Content<'_> {
    fn count<E: Error>(&self, bytes: usize) -> Result<(), E> {
        self.0.set(self.0.get().saturating_sub(bytes + 16));
        if self.0.get() == 0 {
            return Err(E::custom(format!(
                "the aliases (`*name`) stand for more than {CONTENT} bytes: write out what they stand for"
            )));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Content<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Methods for single values without a length of their own.
macro_rules! counts {
    ($($visit:ident: $value:ty),*) => {
        $(fn $visit<E: Error>(self, _: $value) -> Result<(), E> {
            self.count(0)
        })*
    };
}

impl<'de> Visitor<'de> for Content<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value")
    }

    counts! { visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_i128: i128, visit_u128: u128, visit_f64: f64 }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.count(text.len())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.count(0)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.count(0)?;
        while items.next_element_seed(Content(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        self.count(0)?;
        while entries.next_key_seed(Content(self.0))?.is_some() {
            entries.next_value_seed(Content(self.0))?;
        }
        Ok(())
    }

    /// A value with a tag.
    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<(), A::Error> {
        let (_, value) = tagged.variant::<IgnoredAny>()?;
        value.newtype_variant_seed(self)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_yaml::Value;

    use super::*;

    /// A second would do where nothing else runs.
    const BUSY: u64 = 10;

    fn read(text: &str) -> Result<Value, String> {
        from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn text_that_stands_for_more_than_memory_holds_is_refused_within_a_second() {
        let many = |part: &str| part.repeat(100_000);
        // Each list holds the one before ten times.
        let laughs = |first: &str| {
            let mut text = format!("a0: &a0 [{first}]\n");
            for level in 1..30 {
                let before = format!("*a{}, ", level - 1).repeat(10);
                text += &format!("a{level}: &a{level} [{before}]\n");
            }
            text
        };
        let long = "x".repeat(500_000);
        for text in [
            many("["),
            many("{"),
            many("[ # ]\n"),
            many("{a: "),
            many("- "),
            many("? "),
            many("a: "),
            many("!t "),
            many("&a "),
            many("\""),
            laughs("x"),
            laughs(&long),
            format!("a: &a {long}\nb: [{}]", "*a, ".repeat(10_000)),
            format!("a: !t &a {long}\nb: !u [{}]", "*a, ".repeat(10_000)),
            format!("&a {long}: [{}]", "*a, ".repeat(10_000)),
            "- &a [*a, *a]".to_owned(),
            "x: y\n".repeat(1 << 20),
        ] {
            let start = Instant::now();
            let answer = read(&text);
            let took = start.elapsed();
            let shown: String = text.chars().take(40).collect();
            assert!(answer.is_err(), "{shown}");
            assert!(took < Duration::from_secs(BUSY), "{shown}: {took:?}");
        }
        // Long lists are slow to read at worst.
        for text in
            [many("- a\n"), many("*").replace('*', "- '*a'\n"), format!("[{}]", many("a, "))]
        {
            let start = Instant::now();
            assert!(read(&text).is_ok());
            assert!(start.elapsed() < Duration::from_secs(BUSY), "{:?}", start.elapsed());
        }
    }

    #[test]
    fn anchors_and_brackets_of_a_common_size_are_read_as_before() {
        for text in [
            "a: &x {lr: 1e-3}\nb: *x\nc: [*x, !t 1]",
            "target_modules: '.*\\.[a-z]{1,3}\\[norm'",
            "a & b: '*'",
            "",
            "- &a 1\n- *a\n- {1: !k v}",
        ] {
            let plain: Value = serde_yaml::from_str(text).unwrap();
            assert_eq!(read(text).unwrap(), plain, "{text}");
        }
    }
}
