//! Character classes of Python's `re`, written for Rust's `regex`.

use std::collections::HashMap;
use std::fmt::Write;
use std::ops::RangeInclusive;
use std::sync::OnceLock;

use super::python_flags::Flags;
use super::python_source::Member;

/// A class as text. Everything is spelled out, so that no flag is needed and no operator is read.
pub(super) fn class(members: &[Member], negated: bool, flags: Flags) -> String {
    let mut text = String::new();
    for member in members {
        match *member {
            Member::Range(first, last) => {
                range(&mut text, first, last);
                if flags.ignore_case {
                    for other in variants(first, last, flags.ascii) {
                        range(&mut text, other as u32, other as u32);
                    }
                }
            }
            Member::Category(letter) => text.push_str(&category(letter, flags.ascii)),
        }
    }
    match (text.is_empty(), negated) {
        // Surrogates alone, which no Rust string holds.
        (true, false) => format!("[^{ANY}]"),
        (true, true) => format!("[{ANY}]"),
        (false, true) => format!("[^{text}]"),
        (false, false) => format!("[{text}]"),
    }
}

/// A literal as text.
pub(super) fn literal(code: u32, flags: Flags) -> String {
    let mut others = variants(code, code, flags.ascii);
    match char::from_u32(code) {
        Some(c) if !flags.ignore_case || others.next().is_none() => escaped(c),
        _ => class(&[Member::Range(code, code)], false, flags),
    }
}

/// `.` as text.
pub(super) fn dot(flags: Flags) -> String {
    if flags.dot_all {
        format!("[{ANY}]")
    } else {
        r"[^\n]".into()
    }
}

/// True for a capital letter above U+FFFF, which Python forgets in a class without regard to case.
pub(super) fn is_forgotten(code: u32) -> bool {
    code > 0xffff && char::from_u32(code).is_some_and(|c| lower(c) != c)
}

const ANY: &str = r"\x00-\x{10FFFF}";

fn range(text: &mut String, first: u32, last: u32) {
    let next = |code: u32| if (0xd800..0xe000).contains(&code) { 0xe000 } else { code };
    let previous = |code: u32| if (0xd800..0xe000).contains(&code) { 0xd7ff } else { code };
    let (first, last) = (char::from_u32(next(first)), char::from_u32(previous(last)));
    match (first, last) {
        (Some(first), Some(last)) if first == last => text.push_str(&escaped(first)),
        (Some(first), Some(last)) if first < last => {
            text.push_str(&format!("{}-{}", escaped(first), escaped(last)));
        }
        _ => {}
    }
}

fn escaped(c: char) -> String {
    let mut text = String::new();
    if c.is_ascii_alphanumeric() || c == '_' {
        text.push(c);
    } else {
        write!(text, r"\x{{{:X}}}", c as u32).expect("a string takes all text");
    }
    text
}

/// Python's categories: letters and numbers without marks for `\w`, four more controls for `\s`.
pub(super) fn category(letter: char, ascii: bool) -> String {
    let members = match (letter.to_ascii_lowercase(), ascii) {
        ('d', true) => "0-9",
        ('d', false) => r"\p{Nd}",
        ('w', true) => "0-9A-Za-z_",
        ('w', false) => r"\p{L}\p{N}_",
        (_, true) => r"\x09-\x0D\x20",
        (_, false) => {
            r"\x09-\x0D\x1C-\x20\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}"
        }
    };
    let not = if letter.is_ascii_uppercase() { "^" } else { "" };
    format!("[{not}{members}]")
}

/// The characters outside of a range that match one in it without regard to case.
fn variants(first: u32, last: u32, ascii: bool) -> impl Iterator<Item = char> {
    let inside = move |c: char| (first..=last).contains(&(c as u32));
    let mut found: Vec<char> = Vec::new();
    if ascii {
        let letters = ('a'..='z').chain('A'..='Z').filter(|c| inside(*c));
        found.extend(letters.map(|c| (c as u8 ^ 0x20) as char));
    } else {
        for group in cases().iter().filter(|group| group.iter().any(|c| inside(*c))) {
            found.extend(group);
        }
    }
    found.into_iter().filter(move |c| !inside(*c))
}

/// Groups of characters that Python takes for each other without regard to case: their lower case has one upper case.
fn cases() -> &'static [Vec<char>] {
    static CASES: OnceLock<Vec<Vec<char>>> = OnceLock::new();
    CASES.get_or_init(|| {
        let mut groups: HashMap<String, Vec<char>> = HashMap::new();
        // Most characters have no case; those that others become are added with them.
        for c in CASED.iter().cloned().flatten().filter(has_case) {
            groups.entry(lower(c).to_uppercase().collect()).or_default().push(c);
        }
        groups.into_values().filter(|group| group.len() > 1).collect()
    })
}

/// Ranges that hold all characters with a case. To look through all of Unicode takes a program longer than to open a
/// model.
const CASED: [RangeInclusive<char>; 5] = [
    '\0'..='\u{2FFF}',
    '\u{A600}'..='\u{ABFF}',
    '\u{FB00}'..='\u{11FFF}',
    '\u{16E00}'..='\u{16FFF}',
    '\u{1DF00}'..='\u{1E9FF}',
];

fn has_case(c: &char) -> bool {
    !c.to_lowercase().eq([*c]) || !c.to_uppercase().eq([*c])
}

/// The one letter that a letter becomes in lower case.
fn lower(c: char) -> char {
    c.to_lowercase().next().unwrap_or(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_characters_with_a_case_are_in_the_ranges() {
        let is_known = |c: &char| CASED.iter().any(|range| range.contains(c));
        let missing: Vec<char> =
            ('\0'..=char::MAX).filter(|c| !is_known(c) && has_case(c)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
