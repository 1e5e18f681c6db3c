//! The text in place of a match, in Python's syntax.

use super::pattern::{shown, Groups};
use super::python_re::Translated;
use super::python_source::{Number, Refused, Result as Read, Source, Token};
use crate::error::{refusal, Result};

/// The text in place of a match: characters, and groups of the match.
#[derive(Debug, Clone)]
pub(super) struct Replacement(Vec<Part>);

#[derive(Debug, Clone)]
enum Part {
    Char(char),
    Group(usize),
}

impl Replacement {
    /// For the pattern `of`. `key` names the setting in errors.
    pub(super) fn new(replacement: &str, of: &Translated, key: &str) -> Result<Self> {
        parts(replacement, of).map(Replacement).map_err(|Refused { reason, at }| {
            refusal!(
                InvalidPattern,
                "{key}: '{}' cannot replace a match, as Python reads it: {reason} (up to character {at}). Write \
                 '\\1' or '\\g<name>' for a group and '\\\\' for a backslash",
                shown(replacement)
            )
        })
    }

    /// Appends the replacement of a match. A group that matched nothing is empty.
    pub(super) fn expand(&self, text: &str, groups: &Groups, replaced: &mut String) {
        for part in &self.0 {
            match part {
                Part::Char(c) => replaced.push(*c),
                Part::Group(group) => {
                    let place = groups.get(*group).cloned().flatten();
                    replaced.push_str(place.map_or("", |place| &text[place]));
                }
            }
        }
    }
}

fn parts(replacement: &str, of: &Translated) -> Read<Vec<Part>> {
    let mut source = Source::new(replacement);
    let mut parts = Vec::new();
    while let Some(token) = source.next()? {
        let part = match token {
            Token::Plain(c) => Part::Char(c),
            Token::Escaped('g') => {
                if !source.take('<') {
                    return source.refuse(r"'\g' without '<'");
                }
                let name = source.name('>')?;
                match (of.names.get(&name), name.parse()) {
                    (Some(group), _) => Part::Group(*group),
                    (None, Ok(group)) if group <= of.groups && !name.starts_with('+') => {
                        Part::Group(group)
                    }
                    _ => return source.refuse(format!("there is no group '{name}'")),
                }
            }
            Token::Escaped('0') => {
                let digits = source.take_while(2, |c| ('0'..='7').contains(&c));
                Part::Char(source.octal(&format!("0{digits}"))? as u8 as char)
            }
            Token::Escaped(c @ '1'..='9') => match source.number(c)? {
                Number::Octal(code) => Part::Char(code as u8 as char),
                Number::Group(group) if group <= of.groups => Part::Group(group),
                Number::Group(group) => {
                    return source.refuse(format!("there is no group {group}"));
                }
            },
            Token::Escaped(c) => Part::Char(match c {
                'a' => '\x07',
                'b' => '\x08',
                'f' => '\x0c',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'v' => '\x0b',
                '\\' => '\\',
                c if c.is_ascii_alphabetic() => {
                    return source.refuse(format!(r"'\{c}', which is no escape in Python"))
                }
                c => {
                    // Python keeps the backslash.
                    parts.push(Part::Char('\\'));
                    c
                }
            }),
        };
        parts.push(part);
    }
    Ok(parts)
}
