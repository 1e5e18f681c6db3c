//! A document or row as text, with what is learned of it marked: people find mistakes in their data there.

use std::fmt;

use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Example {
    /// The file and the line.
    pub place: String,
    pub parts: Vec<Part>,
}

#[derive(Debug, Serialize)]
pub struct Part {
    pub text: String,
    pub learned: bool,
}

impl Example {
    pub fn new(place: String) -> Self {
        Example { place, parts: Vec::new() }
    }

    /// Adds text, to the last part if that is learned as well, or neither is.
    pub fn push(&mut self, text: &str, learned: bool) {
        match self.parts.last_mut().filter(|part| part.learned == learned) {
            Some(part) => part.text += text,
            None => self.parts.push(Part { text: text.to_owned(), learned }),
        }
    }
}

/// In colour on a terminal, with brackets elsewhere.
impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let colours = console::colors_enabled();
        let mark = if colours { "in green" } else { "in [[ ]]" };
        writeln!(f, "{}, with what is learned {mark}:", self.place)?;
        for Part { text, learned } in &self.parts {
            match (learned, colours) {
                (false, _) => write!(f, "{text}")?,
                (true, true) => write!(f, "{}", console::style(text).green())?,
                (true, false) => write!(f, "[[{text}]]")?,
            }
        }
        Ok(())
    }
}
