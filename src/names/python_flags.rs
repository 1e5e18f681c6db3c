//! The flags of Python's `re`: `(?i)`, `(?s-x:…)`.

use super::python_source::{Result, Source, Token};

/// The flags that hold at a place of a pattern.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Flags {
    pub(super) ignore_case: bool,
    pub(super) multiline: bool,
    pub(super) dot_all: bool,
    pub(super) verbose: bool,
    pub(super) ascii: bool,
    /// Asked for at the front, where it excludes `ascii`.
    unicode: bool,
}

/// Flags for the whole pattern, or for a group.
pub(super) enum Scope {
    Whole(Flags),
    Group(Flags),
}

/// The signs of the flags.
pub(super) const SIGNS: &str = "aiLmstux";

/// Reads flags, of which the first sign is taken, up to their `)` or `:`, and adds them to those that hold before.
pub(super) fn read(source: &mut Source, first: char, before: Flags) -> Result<Scope> {
    let (mut on, mut off, mut minus) = (String::new(), String::new(), false);
    let mut sign = first;
    loop {
        match sign {
            '-' if !minus => minus = true,
            ':' if !minus || !off.is_empty() => break,
            ')' if !minus => break,
            c if SIGNS.contains(c) && !minus => on.push(c),
            c if SIGNS.contains(c) => off.push(c),
            _ => return source.refuse("flags that are unknown, or have no ':' or ')' after them"),
        }
        sign = match source.next()? {
            Some(Token::Plain(c)) => c,
            _ => return source.refuse("flags without a ':' or ')' after them"),
        };
    }
    let whole = sign == ')';
    if on.contains(['L', 't']) {
        return source.refuse("the flags 'L' and 't' do not fit a text");
    }
    if off.contains(['a', 'u', 'L', 't']) || on.contains(|c| off.contains(c)) {
        return source.refuse("flags that cannot be turned off");
    }
    let former = if whole { before } else { Flags::default() };
    if (former.ascii || on.contains('a')) && (former.unicode || on.contains('u')) {
        return source.refuse("the flags 'a' and 'u' exclude each other");
    }
    let holds = |sign, before| (before || on.contains(sign)) && !off.contains(sign);
    let flags = Flags {
        ignore_case: holds('i', before.ignore_case),
        multiline: holds('m', before.multiline),
        dot_all: holds('s', before.dot_all),
        verbose: holds('x', before.verbose),
        ascii: holds('a', before.ascii) && !on.contains('u'),
        unicode: whole && holds('u', before.unicode),
    };
    Ok(if whole { Scope::Whole(flags) } else { Scope::Group(flags) })
}
