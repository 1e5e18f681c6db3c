//! Patterns of Python's `re` (3.11), read as Python reads them and written for Rust's `regex` and `fancy-regex`.
//!
//! The text that is written needs no flag: classes, letters without regard to case and anchors are spelled out.

use std::collections::HashMap;

use super::python_class::{category, class, dot, is_forgotten, literal};
use super::python_flags::{self, Flags, Scope};
use super::python_source::{Escape, Member, Number, Result, Source, Token, ENDLESS};
use Token::{Escaped, Plain};

/// A pattern for Rust, with the same groups.
#[derive(Debug)]
pub(super) struct Translated {
    pub(super) text: String,
    /// The numbers of the named groups.
    pub(super) names: HashMap<String, usize>,
    /// The number of its groups.
    pub(super) groups: usize,
    /// The fewest and the most characters of a match.
    pub(super) width: (u64, u64),
}

/// The use of a pattern: on a whole text, or to rename what it finds in a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Usage {
    Match,
    Rename,
}

/// Translates a pattern.
pub(super) fn translate(pattern: &str, usage: Usage) -> Result<Translated> {
    let mut parser = Parser::new(pattern, usage);
    let whole = parser.alternatives(Flags::default(), 0)?;
    if parser.source.peek().is_some() {
        return parser.refuse("a ')' without its '('");
    }
    if whole.unsteady && (parser.refers || usage == Usage::Rename) {
        return parser.refuse(UNSTEADY);
    }
    let groups = parser.groups.len() - 1;
    Ok(Translated { text: whole.text, names: parser.names, groups, width: whole.width })
}

/// `fancy-regex` takes 64 levels, of which some are ours.
const DEPTH: usize = 50;
const UNSTEADY: &str = "a repetition of what may be empty, in an atomic group, beside a reference to a group, or in a rule \
                        that renames, is not known here";

/// A part of a pattern.
struct Piece {
    text: String,
    sort: Sort,
    /// The fewest and the most characters that it matches.
    width: (u64, u64),
    /// Contains a repetition of what may be empty: engines differ in where they stop, and so in what they prefer.
    unsteady: bool,
}

#[derive(PartialEq)]
enum Sort {
    /// May be repeated.
    Item,
    /// Matches a place, and may not be repeated.
    Anchor,
    /// Is a repetition, which may not be repeated again.
    Repeat,
}

impl Piece {
    fn new(text: impl Into<String>, width: (u64, u64)) -> Self {
        Piece { text: text.into(), sort: Sort::Item, width, unsteady: false }
    }

    fn anchor(text: impl Into<String>) -> Self {
        Piece { text: text.into(), sort: Sort::Anchor, width: (0, 0), unsteady: false }
    }
}

struct Parser {
    source: Source,
    usage: Usage,
    names: HashMap<String, usize>,
    /// The widths of the groups that are closed; the first stands for the whole.
    groups: Vec<Option<(u64, u64)>>,
    /// A group is referred to.
    refers: bool,
    /// The number of groups before the outermost look-behind.
    behind: Option<usize>,
}

impl Parser {
    fn new(pattern: &str, usage: Usage) -> Self {
        Parser {
            source: Source::new(pattern),
            usage,
            names: HashMap::new(),
            groups: vec![None],
            refers: false,
            behind: None,
        }
    }

    fn refuse<T>(&self, reason: impl Into<String>) -> Result<T> {
        self.source.refuse(reason)
    }

    fn alternatives(&mut self, mut flags: Flags, depth: usize) -> Result<Piece> {
        if depth > DEPTH {
            return self.refuse(format!("groups within groups, more than {DEPTH} deep"));
        }
        let mut whole = self.sequence(&mut flags, depth, depth == 0)?;
        while self.source.take('|') {
            let next = self.sequence(&mut flags, depth, false)?;
            whole.text.push('|');
            whole.text.push_str(&next.text);
            whole.width.0 = whole.width.0.min(next.width.0);
            whole.width.1 = whole.width.1.max(next.width.1);
            whole.unsteady |= next.unsteady;
        }
        Ok(whole)
    }

    /// True at the end of an alternative that must match a whole text.
    fn is_last(&self) -> bool {
        self.usage == Usage::Match && matches!(self.source.peek(), None | Some(Plain('|')))
    }

    fn sequence(&mut self, flags: &mut Flags, depth: usize, first: bool) -> Result<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        while let Some(token) = self.source.peek() {
            if matches!(token, Plain('|' | ')')) {
                break;
            }
            self.source.next()?;
            match token {
                Plain(' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c') if flags.verbose => {}
                Plain('#') if flags.verbose => {
                    while !matches!(self.source.next()?, None | Some(Plain('\n'))) {}
                }
                Escaped(c) => pieces.push(self.escape(c, *flags)?),
                Plain('[') => pieces.push(self.class(*flags)?),
                Plain('.') => pieces.push(Piece::new(dot(*flags), (1, 1))),
                Plain('^') if flags.multiline => pieces.push(Piece::anchor("(?m:^)")),
                Plain('^') => pieces.push(Piece::anchor(r"\A")),
                Plain('$') if flags.multiline => pieces.push(Piece::anchor("(?m:$)")),
                // Before the end of a whole match, `$` says nothing more, and needs no look-ahead.
                Plain('$') if depth == 0 && self.is_last() => pieces.push(Piece::anchor(r"\z")),
                Plain('$') => pieces.push(Piece::anchor(r"(?=\n?\z)")),
                Plain('(') => {
                    let front = first && pieces.is_empty();
                    pieces.extend(self.group(flags, depth, front)?);
                }
                Plain(c @ ('*' | '+' | '?' | '{')) => match self.source.counts(c)? {
                    Some(counts) => {
                        let Some(item) = pieces.pop().filter(|p| p.sort != Sort::Anchor) else {
                            return self
                                .refuse(format!("nothing before '{c}' that it could repeat"));
                        };
                        pieces.push(self.repeated(item, counts)?);
                    }
                    None => pieces.push(Piece::new(literal('{' as u32, *flags), (1, 1))),
                },
                Plain(c) => pieces.push(Piece::new(literal(c as u32, *flags), (1, 1))),
            }
        }
        let mut whole = Piece::new("", (0, 0));
        for piece in pieces {
            whole.text.push_str(&piece.text);
            whole.width.0 = whole.width.0.saturating_add(piece.width.0);
            whole.width.1 = whole.width.1.saturating_add(piece.width.1);
            whole.unsteady |= piece.unsteady;
        }
        Ok(whole)
    }

    fn repeated(&mut self, item: Piece, (least, most): (u64, u64)) -> Result<Piece> {
        if item.sort == Sort::Repeat {
            return self.refuse("a repetition of a repetition");
        }
        let counts = match (least, most) {
            (0, ENDLESS) => "*".to_owned(),
            (1, ENDLESS) => "+".to_owned(),
            (0, 1) => "?".to_owned(),
            (least, ENDLESS) => format!("{{{least},}}"),
            (least, most) => format!("{{{least},{most}}}"),
        };
        let item_width = item.width;
        let lazy = self.source.take('?');
        let possessive = !lazy && self.source.take('+');
        let text = match (item_width.1, least, most) {
            // An item without width is not repeated by `fancy-regex`, and says nothing more the second time.
            (0, _, 0) => format!("(?:(?!){}|)", item.text),
            (0, 0, _) if lazy => format!("(?:|{})", item.text),
            (0, 0, _) => format!("(?:{}|)", item.text),
            (0, ..) => item.text,
            // Python does not go back into a single repetition either.
            _ if possessive => format!("(?>{}){counts}", item.text),
            _ => format!("(?:{}){counts}{}", item.text, if lazy { "?" } else { "" }),
        };
        let may_be_empty = item_width.0 == 0 && item_width.1 > 0;
        let unsteady = item.unsteady || (may_be_empty && most > 1 && most > least);
        if possessive && unsteady {
            return self.refuse(UNSTEADY);
        }
        let text = if possessive { format!("(?>{text})") } else { text };
        let widest = match (item_width.1, most) {
            (0, _) => 0,
            (_, ENDLESS) => u64::MAX,
            (width, most) => width.saturating_mul(most),
        };
        let width = (item_width.0.saturating_mul(least), widest);
        Ok(Piece { text, sort: Sort::Repeat, width, unsteady })
    }

    fn escape(&mut self, c: char, flags: Flags) -> Result<Piece> {
        let word = category('w', flags.ascii);
        Ok(match c {
            'A' => Piece::anchor(r"\A"),
            'Z' => Piece::anchor(r"\z"),
            'b' => Piece::anchor(format!("(?:(?<={word})(?!{word})|(?<!{word})(?={word}))")),
            // Python finds no `\B` in the empty text.
            'B' => {
                Piece::anchor(format!(r"(?:(?<={word})(?={word})|(?<!{word})(?!{word})(?!\A\z))"))
            }
            '1'..='9' => match self.source.number(c)? {
                Number::Octal(code) => Piece::new(literal(code, flags), (1, 1)),
                Number::Group(group) => self.reference(group, flags)?,
            },
            _ => match self.source.shared_escape(c)? {
                Escape::Code(code) => Piece::new(literal(code, flags), (1, 1)),
                Escape::Category(letter) => Piece::new(category(letter, flags.ascii), (1, 1)),
            },
        })
    }

    /// A reference to a group that is closed.
    fn reference(&mut self, group: usize, flags: Flags) -> Result<Piece> {
        let Some(width) = self.groups.get(group).copied() else {
            return self.refuse(format!("there is no group {group}"));
        };
        let Some(width) = width else { return self.refuse("a reference to an open group") };
        self.check_behind(group)?;
        if flags.ignore_case {
            return self.refuse("a reference to a group without regard to case is not known here");
        }
        self.refers = true;
        Ok(Piece::new(format!(r"(?:\{group})"), width))
    }

    fn check_behind(&self, group: usize) -> Result<()> {
        match self.behind {
            Some(_) if self.groups.get(group).copied().flatten().is_none() => {
                self.refuse("a reference to an open group")
            }
            Some(before) if group >= before => {
                self.refuse("a reference to a group of the same look-behind")
            }
            _ => Ok(()),
        }
    }

    /// A class, after its `[`.
    fn class(&mut self, flags: Flags) -> Result<Piece> {
        let (members, negated) = self.source.class()?;
        let forgotten = |m: &Member| matches!(m, Member::Range(a, b) if a == b && is_forgotten(*a));
        if flags.ignore_case && members.len() > 1 && members.iter().any(forgotten) {
            return self.refuse(
                "a capital letter above U+FFFF in '[…]' without regard to case, where Python finds none: write the \
                 small one",
            );
        }
        Ok(Piece::new(class(&members, negated, flags), (1, 1)))
    }

    /// A group, after its `(`. `front`: nothing stands before it but flags.
    fn group(&mut self, flags: &mut Flags, depth: usize, front: bool) -> Result<Option<Piece>> {
        if !self.source.take('?') {
            return self.capture(None, *flags, depth).map(Some);
        }
        let Some(token) = self.source.next()? else {
            return self.refuse("a '(?' without its ')'");
        };
        match token {
            Plain('P') if self.source.take('<') => {
                let name = self.source.name('>')?;
                self.capture(Some(name), *flags, depth).map(Some)
            }
            Plain('P') if self.source.take('=') => {
                let name = self.source.name(')')?;
                let Some(group) = self.names.get(&name).copied() else {
                    return self.refuse(format!("there is no group '{name}'"));
                };
                self.reference(group, *flags).map(Some)
            }
            Plain(':') => self.enclosed("(?:", *flags, depth).map(Some),
            Plain('>') => self.enclosed("(?>", *flags, depth).map(Some),
            Plain('#') => loop {
                match self.source.next()? {
                    None => return self.refuse("a comment without its ')'"),
                    Some(Plain(')')) => return Ok(None),
                    _ => {}
                }
            },
            Plain('=') => self.look("(?=", *flags, depth).map(Some),
            Plain('!') => self.look("(?!", *flags, depth).map(Some),
            Plain('<') if self.source.take('=') => self.look("(?<=", *flags, depth).map(Some),
            Plain('<') if self.source.take('!') => self.look("(?<!", *flags, depth).map(Some),
            Plain('(') => self.refuse("'(?(…)…)', a condition on a group, is not known here"),
            Plain(c) if c == '-' || python_flags::SIGNS.contains(c) => {
                match python_flags::read(&mut self.source, c, *flags)? {
                    Scope::Whole(all) if front => {
                        *flags = all;
                        Ok(None)
                    }
                    Scope::Whole(_) => {
                        self.refuse("flags for the whole pattern that are not at its front")
                    }
                    Scope::Group(inner) => self.enclosed("(?:", inner, depth).map(Some),
                }
            }
            _ => self.refuse("an unknown sign after '(?'"),
        }
    }

    /// The inside of a group and its `)`.
    fn enclosed(&mut self, open: &str, flags: Flags, depth: usize) -> Result<Piece> {
        let inner = self.alternatives(flags, depth + 1)?;
        if !self.source.take(')') {
            return self.refuse("a '(' without its ')'");
        }
        if open == "(?>" && inner.unsteady {
            return self.refuse(UNSTEADY);
        }
        let text = format!("{open}{})", inner.text);
        Ok(Piece { text, sort: Sort::Item, ..inner })
    }

    fn capture(&mut self, name: Option<String>, flags: Flags, depth: usize) -> Result<Piece> {
        let group = self.groups.len();
        self.groups.push(None);
        if let Some(name) = name {
            if !is_identifier(&name) {
                return self.refuse(format!("'{name}', which is no name for a group"));
            }
            if self.names.insert(name.clone(), group).is_some() {
                return self.refuse(format!("two groups with the name '{name}'"));
            }
        }
        let piece = self.enclosed("(", flags, depth)?;
        self.groups[group] = Some(piece.width);
        Ok(piece)
    }

    fn look(&mut self, open: &str, flags: Flags, depth: usize) -> Result<Piece> {
        let before = self.behind;
        let behind = open.contains('<');
        if behind {
            self.behind = before.or(Some(self.groups.len()));
        }
        let mut piece = self.enclosed(open, flags, depth)?;
        self.behind = before;
        if behind && piece.width.0 != piece.width.1 {
            return self.refuse("a look-behind of more than one width");
        }
        piece.width = (0, 0);
        Ok(piece)
    }
}

/// As Python's `str.isidentifier`.
fn is_identifier(name: &str) -> bool {
    regex::Regex::new(r"\A[_\p{XID_Start}]\p{XID_Continue}*\z").is_ok_and(|r| r.is_match(name))
}
