//! The characters of a pattern of Python's `re`, and its escapes.

/// The reason why a pattern is refused, and the character at which it was found.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) reason: String,
    pub(super) at: usize,
}

pub(super) type Result<T> = std::result::Result<T, Refused>;

/// The meaning of an escape, inside or outside of a class.
pub(super) enum Escape {
    Code(u32),
    Category(char),
}

/// The meaning of digits after a backslash.
pub(super) enum Number {
    Octal(u32),
    Group(usize),
}

/// A member of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Member {
    /// Code points from the first to the last, surrogates among them.
    Range(u32, u32),
    /// The letter of `\d`, `\s`, `\w` or of their opposites.
    Category(char),
}

impl Member {
    pub(super) fn one(c: char) -> Self {
        Member::Range(c as u32, c as u32)
    }
}

/// A character, or one after a backslash.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Token {
    Plain(char),
    Escaped(char),
}
use Token::{Escaped, Plain};

/// The count that stands for "without end".
pub(super) const ENDLESS: u64 = u32::MAX as u64;

pub(super) struct Source {
    chars: Vec<char>,
    at: usize,
}

impl Source {
    pub(super) fn new(pattern: &str) -> Self {
        Source { chars: pattern.chars().collect(), at: 0 }
    }

    pub(super) fn refuse<T>(&self, reason: impl Into<String>) -> Result<T> {
        Err(Refused { reason: reason.into(), at: self.at })
    }

    pub(super) fn peek(&self) -> Option<Token> {
        match (self.chars.get(self.at)?, self.chars.get(self.at + 1)) {
            ('\\', Some(c)) => Some(Escaped(*c)),
            // A backslash at the end is refused where it is taken.
            (c, _) => Some(Plain(*c)),
        }
    }

    pub(super) fn next(&mut self) -> Result<Option<Token>> {
        let token = self.peek();
        match token {
            Some(Plain('\\')) => return self.refuse("a backslash at the end"),
            Some(Escaped(_)) => self.at += 2,
            Some(Plain(_)) => self.at += 1,
            None => {}
        }
        Ok(token)
    }

    pub(super) fn take(&mut self, c: char) -> bool {
        let found = self.peek() == Some(Plain(c));
        self.at += usize::from(found);
        found
    }

    /// At most `most` characters that `wanted` accepts.
    pub(super) fn take_while(&mut self, most: usize, wanted: impl Fn(char) -> bool) -> String {
        let taken: String =
            self.chars[self.at..].iter().copied().take(most).take_while(|c| wanted(*c)).collect();
        self.at += taken.len();
        taken
    }

    /// The name before `end`.
    pub(super) fn name(&mut self, end: char) -> Result<String> {
        let mut name = String::new();
        loop {
            match self.next()? {
                None => return self.refuse(format!("a name without '{end}' after it")),
                Some(Plain(c)) if c == end => break,
                Some(Plain(c)) => name.push(c),
                Some(Escaped(c)) => name.extend(['\\', c]),
            }
        }
        if name.is_empty() {
            return self.refuse("an empty name");
        }
        Ok(name)
    }

    /// The escapes that mean the same inside and outside of a class.
    pub(super) fn shared_escape(&mut self, c: char) -> Result<Escape> {
        let hexadecimal = match c {
            'd' | 'D' | 's' | 'S' | 'w' | 'W' => return Ok(Escape::Category(c)),
            'a' => return Ok(Escape::Code(7)),
            'f' => return Ok(Escape::Code(12)),
            'n' => return Ok(Escape::Code(10)),
            'r' => return Ok(Escape::Code(13)),
            't' => return Ok(Escape::Code(9)),
            'v' => return Ok(Escape::Code(11)),
            '0' => {
                let digits = self.take_while(2, |c| ('0'..='7').contains(&c));
                return Ok(Escape::Code(self.octal(&format!("0{digits}"))?));
            }
            'x' => 2,
            'u' => 4,
            'U' => 8,
            'N' => {
                return self.refuse(
                    r"'\N{…}', a character by its name, is not known here: write the character, or its number as '\u….'",
                )
            }
            c if c.is_ascii_alphanumeric() => {
                return self.refuse(format!(r"'\{c}', which is no escape in Python"))
            }
            c => return Ok(Escape::Code(c as u32)),
        };
        let digits = self.take_while(hexadecimal, |c| c.is_ascii_hexdigit());
        match u32::from_str_radix(&digits, 16) {
            Ok(code) if digits.len() == hexadecimal && code <= char::MAX as u32 => {
                Ok(Escape::Code(code))
            }
            _ => self.refuse(format!(r"'\{c}{digits}', which is no character")),
        }
    }

    /// The number after a backslash, whose first digit, not 0, is taken: three octal digits are a character.
    pub(super) fn number(&mut self, first: char) -> Result<Number> {
        let octal = |c: char| ('0'..='7').contains(&c);
        let mut digits = first.to_string();
        digits += &self.take_while(1, |c| c.is_ascii_digit());
        if digits.len() == 2 && digits.chars().all(octal) {
            digits += &self.take_while(1, octal);
        }
        if digits.len() == 3 {
            return self.octal(&digits).map(Number::Octal);
        }
        Ok(Number::Group(digits.parse().unwrap_or(usize::MAX)))
    }

    pub(super) fn octal(&self, digits: &str) -> Result<u32> {
        match u32::from_str_radix(digits, 8) {
            Ok(code) if code <= 0o377 => Ok(code),
            _ => self.refuse(format!(r"'\{digits}', which is above '\377'")),
        }
    }

    /// The counts of a repetition; nothing for a `{` that is a character.
    pub(super) fn counts(&mut self, sign: char) -> Result<Option<(u64, u64)>> {
        match sign {
            '?' => return Ok(Some((0, 1))),
            '*' => return Ok(Some((0, ENDLESS))),
            '+' => return Ok(Some((1, ENDLESS))),
            _ => {}
        }
        let start = self.at;
        if self.peek() == Some(Plain('}')) {
            return Ok(None);
        }
        let digit = |c: char| c.is_ascii_digit();
        let least = self.take_while(usize::MAX, digit);
        let most = if self.take(',') { self.take_while(usize::MAX, digit) } else { least.clone() };
        if !self.take('}') {
            self.at = start;
            return Ok(None);
        }
        let count = |digits: &str, absent: u64| match digits.parse::<u64>() {
            Ok(count) if count < ENDLESS => Ok(count),
            _ if digits.is_empty() => Ok(absent),
            _ => self.refuse("a repetition that is too large"),
        };
        let (least, most) = (count(&least, 0)?, count(&most, ENDLESS)?);
        if most < least {
            return self.refuse("a repetition whose largest number is below its smallest");
        }
        Ok(Some((least, most)))
    }

    pub(super) fn member(&mut self, token: Token) -> Result<Member> {
        let code = match token {
            Plain(c) => c as u32,
            Escaped('b') => 8,
            Escaped(c @ '1'..='7') => {
                let more = self.take_while(2, |c| ('0'..='7').contains(&c));
                self.octal(&format!("{c}{more}"))?
            }
            Escaped(c) => match self.shared_escape(c)? {
                Escape::Code(code) => code,
                Escape::Category(letter) => return Ok(Member::Category(letter)),
            },
        };
        Ok(Member::Range(code, code))
    }

    /// The members of a class after its `[`, and whether it is negated.
    pub(super) fn class(&mut self) -> Result<(Vec<Member>, bool)> {
        let negated = self.take('^');
        let mut members: Vec<Member> = Vec::new();
        loop {
            let member = match self.next()? {
                None => return self.refuse("a '[' without its ']'"),
                Some(Plain(']')) if !members.is_empty() => break,
                Some(token) => self.member(token)?,
            };
            if !self.take('-') {
                members.push(member);
                continue;
            }
            let end = match self.next()? {
                None => return self.refuse("a '[' without its ']'"),
                Some(Plain(']')) => {
                    members.extend([member, Member::one('-')]);
                    break;
                }
                Some(token) => self.member(token)?,
            };
            match (member, end) {
                (Member::Range(first, _), Member::Range(_, last)) if first <= last => {
                    members.push(Member::Range(first, last));
                }
                _ => {
                    return self.refuse(
                        "a range in '[…]' that does not go upwards from one character to another",
                    )
                }
            }
        }
        Ok((members, negated))
    }
}
