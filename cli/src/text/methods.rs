//! Methods of Python's `str`, `list`, `dict` and numbers that templates call.

use minijinja::value::{from_args, Kwargs, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::python;

/// Those that minijinja lacks, or that differ from Python's; then its own.
pub fn call(state: &mut State, of: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = of.as_str() {
        if let Some(value) = of_text(state, text, name, args)? {
            return Ok(value);
        }
    }
    let is_list = matches!(of.kind(), ValueKind::Seq | ValueKind::Iterable);
    match name {
        "copy" if is_list || of.kind() == ValueKind::Map => {
            let () = from_args(args)?;
            Ok(of.clone())
        }
        // Even one that is undefined.
        "get" if of.kind() == ValueKind::Map && args.len() == 2 => {
            Ok(of.as_object().and_then(|map| map.get_value(&args[0])).unwrap_or(args[1].clone()))
        }
        "index" if is_list => {
            let (item,): (&Value,) = from_args(args)?;
            let place = of.try_iter()?.position(|other| other == *item);
            place.map(Value::from).ok_or_else(|| refused(format!("{item} is not in the list")))
        }
        "is_integer" if of.kind() == ValueKind::Number => {
            let () = from_args(args)?;
            let number = python::as_float(of);
            Ok(Value::from(number.is_none_or(|number| number.fract() == 0.)))
        }
        _ => unknown_method_callback(state, of, name, args),
    }
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn of_text(state: &State, text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let value = match name {
        "strip" | "lstrip" | "rstrip" => {
            let (given,): (Option<&str>,) = from_args(args)?;
            let stripped = |c: char| given.map_or(is_space(c), |given| given.contains(c));
            Value::from(match name {
                "strip" => text.trim_matches(stripped),
                "lstrip" => text.trim_start_matches(stripped),
                _ => text.trim_end_matches(stripped),
            })
        }
        "split" | "rsplit" => {
            let (separator, most, kwargs): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
            let separator = match separator {
                Some(separator) => Some(separator),
                None => kwargs.get::<Option<Value>>("sep")?,
            };
            let most = most.or(kwargs.get("maxsplit")?).unwrap_or(-1);
            kwargs.assert_all_used()?;
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            let separator = separator.filter(|separator| !separator.is_none());
            let parts = match &separator {
                None => split_at_spaces(text, most, name == "rsplit"),
                Some(separator) => {
                    let separator = separator.as_str().filter(|separator| !separator.is_empty());
                    let separator = separator
                        .ok_or_else(|| refused("the separator of split is not a text, or empty"))?;
                    let most = most.saturating_add(1);
                    if name == "split" {
                        text.splitn(most, separator).collect()
                    } else {
                        let mut parts: Vec<_> = text.rsplitn(most, separator).collect();
                        parts.reverse();
                        parts
                    }
                }
            };
            Value::from_iter(parts)
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (found, absent) = if name == "partition" {
                (text.split_once(separator), [text, "", ""])
            } else {
                (text.rsplit_once(separator), ["", "", text])
            };
            let parts = found.map_or(absent, |(before, after)| [before, separator, after]);
            Value::from(Tuple::new(parts.map(Value::from).to_vec()))
        }
        "removeprefix" | "removesuffix" => {
            let (end,): (&str,) = from_args(args)?;
            let rest = if name == "removeprefix" {
                text.strip_prefix(end)
            } else {
                text.strip_suffix(end)
            };
            Value::from(rest.unwrap_or(text))
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (what, from, to): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let found = part(text, from, to).and_then(|(before, part)| {
                let place = if name.starts_with('r') { part.rfind(what) } else { part.find(what) };
                place.map(|place| before + part[..place].chars().count())
            });
            match found {
                Some(place) => Value::from(place),
                None if name.ends_with("find") => Value::from(-1),
                None => return Err(refused(format!("'{what}' is not in the text"))),
            }
        }
        "startswith" | "endswith" | "count" if args.len() > 1 => {
            let (what, from, to): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
            match part(text, from, to) {
                Some((_, part)) => return of_part(part, name, what).map(Some),
                None if name == "count" => Value::from(0),
                None => Value::from(false),
            }
        }
        "title" => {
            let () = from_args(args)?;
            let mut inside = false;
            let mut title = String::new();
            for c in text.chars() {
                if inside {
                    title.extend(c.to_lowercase());
                } else {
                    title.extend(c.to_uppercase());
                }
                inside = c.is_alphabetic();
            }
            Value::from(title)
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swap = |c: char| {
                let swapped: String = if c.is_uppercase() {
                    c.to_lowercase().collect()
                } else {
                    c.to_uppercase().collect()
                };
                swapped
            };
            Value::from(text.chars().map(swap).collect::<String>())
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(text.to_lowercase().replace('ß', "ss"))
        }
        "ljust" | "rjust" | "center" | "zfill" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            let free = width.saturating_sub(text.chars().count());
            state.consume_fuel(free as u64 / 16)?;
            let fill = fill.unwrap_or(if name == "zfill" { '0' } else { ' ' });
            let (sign, digits) = text.split_at(match name {
                "zfill" if text.starts_with(['+', '-']) => 1,
                _ => 0,
            });
            let before = match name {
                "ljust" => 0,
                "center" => free / 2 + (free & width & 1),
                _ => free,
            };
            let of = |count: usize| String::from_iter(std::iter::repeat_n(fill, count));
            Value::from(format!("{sign}{}{digits}{}", of(before), of(free - before)))
        }
        "splitlines" => {
            let (keep, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(kwargs.get("keepends")?).unwrap_or(false);
            kwargs.assert_all_used()?;
            Value::from_iter(lines(text, keep))
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            for item in items.try_iter()? {
                if item.as_str().is_none() {
                    return Err(refused(format!("join: {item} is not a text")));
                }
            }
            return Ok(None);
        }
        _ => return Ok(None),
    };
    Ok(Some(value))
}

fn of_part(part: &str, name: &str, what: &Value) -> Result<Value, Error> {
    let any = |is: &dyn Fn(&str) -> bool| -> Result<Value, Error> {
        let texts = match what.as_str() {
            Some(_) => vec![what.clone()],
            None => what.try_iter()?.collect(),
        };
        Ok(Value::from(texts.iter().filter_map(Value::as_str).any(is)))
    };
    match name {
        "startswith" => any(&|what| part.starts_with(what)),
        "endswith" => any(&|what| part.ends_with(what)),
        _ => Ok(Value::from(part.matches(what.as_str().unwrap_or_default()).count())),
    }
}

/// Without the spaces around and between.
fn split_at_spaces(text: &str, most: usize, from_end: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let trim = |text| -> &str {
        if from_end {
            str::trim_end_matches(text, is_space)
        } else {
            str::trim_start_matches(text, is_space)
        }
    };
    let mut rest = trim(text);
    while !rest.is_empty() {
        let place = if from_end {
            rest.char_indices().rfind(|(_, c)| is_space(*c)).map(|(at, c)| at + c.len_utf8())
        } else {
            rest.find(is_space)
        };
        let Some(place) = place.filter(|_| parts.len() < most) else {
            parts.push(rest);
            break;
        };
        let (before, after) = rest.split_at(place);
        let (part, others) = if from_end { (after, before) } else { (before, after) };
        parts.push(part);
        rest = trim(others);
    }
    if from_end {
        parts.reverse();
    }
    parts
}

/// `text[from:to]`, and how many characters stand before it; `None` where it begins behind the end.
fn part(text: &str, from: Option<i64>, to: Option<i64>) -> Option<(usize, &str)> {
    let len = text.chars().count() as i64;
    let place = |at: i64| if at < 0 { (at + len).max(0) } else { at };
    let (from, to) = (place(from.unwrap_or(0)), place(to.unwrap_or(len)).min(len));
    if from > to {
        return None;
    }
    let byte = |at: i64| text.char_indices().nth(at as usize).map_or(text.len(), |(byte, _)| byte);
    Some((from as usize, &text[byte(from)..byte(to)]))
}

pub fn lines(text: &str, keep: bool) -> Vec<&str> {
    let is_end =
        |c: char| matches!(c, '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let (mut lines, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(is_end) {
        let end = if rest[at..].starts_with("\r\n") {
            at + 2
        } else {
            at + rest[at..].chars().next().map_or(0, char::len_utf8)
        };
        lines.push(&rest[..if keep { end } else { at }]);
        rest = &rest[end..];
    }
    lines.extend(Some(rest).filter(|rest| !rest.is_empty()));
    lines
}
