//! Jinja as transformers runs chat templates: a minijinja environment with Python's ways.

use std::collections::BTreeSet;

use chrono::format::{Item, StrftimeItems};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{from_args, Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{filters, Environment, Error, ErrorKind, State, Value};
use regex::Regex;

use super::{methods, python};

/// Instructions and blocks of 64 bytes that one rendering may cost: a second at most, and some hundred megabytes.
const FUEL: u64 = 5_000_000;

/// `{% generation %}` becomes a call of this.
pub const GENERATION: &str = "__generation__()";

pub fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.unwrap_or_default());
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(methods::call);
    // Errors say what is undefined.
    environment.set_debug(true);
    environment.set_formatter(|out, _, value| {
        match value.as_str() {
            Some(text) => out.write_str(text),
            None => out.write_str(&python::text(value)),
        }
        .map_err(Error::from)
    });
    environment.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, python::text(&message)))
    });
    environment.add_function("strftime_now", strftime_now);
    environment.add_function("__generation__", |state: &mut State, kwargs: Kwargs| {
        kwargs.get::<Value>("caller")?.call(state, &[])
    });
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |value: &Value| python::text(value));
    type Args = Rest<ValueOrKwargs>;
    environment.add_filter("sort", |state: &State, value: Value, args: Args| {
        filters::sort(state, value, named(args, &["reverse", "case_sensitive", "attribute"])?)
    });
    environment.add_filter("dictsort", |value: &Value, args: Args| {
        filters::dictsort(value, named(args, &["case_sensitive", "by", "reverse"])?)
    });
    environment.add_filter("unique", |state: &State, value: Value, args: Args| {
        filters::unique(state, value, named(args, &["case_sensitive", "attribute"])?)
    });
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("indent", indent);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_test("defined", |value: &Value| !python::is_undefined(value));
    environment.add_test("undefined", |value: &Value| python::is_undefined(value));
    environment.add_test("number", |value: &Value| {
        value.kind() == ValueKind::Bool || value.is_number() || python::as_float(value).is_some()
    });
    environment.add_test("float", |value: &Value| python::as_float(value).is_some());
    environment.add_test("callable", |value: &Value| {
        value.kind() == ValueKind::Plain
            && !python::is_undefined(value)
            && python::as_float(value).is_none()
    });
    environment.add_test("iterable", |value: &Value| {
        !value.is_none() && (value.as_str().is_some() || value.try_iter().is_ok())
    });
    environment.add_test("sequence", |value: &Value| match value.kind() {
        ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined => true,
        // A sum of lists is one, the items of a map are not.
        ValueKind::Iterable => value.len().is_some(),
        _ => false,
    });
    environment
}

/// A template as minijinja reads it.
pub fn source(text: &str) -> Result<String, regex::Error> {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let begin = Regex::new(r"\{%([-+]?)\s*generation\s*([-+]?)%\}")?;
    let end = Regex::new(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}")?;
    let text = begin.replace_all(&text, format!("{{%${{1}} call {GENERATION} ${{2}}%}}"));
    let text = end.replace_all(&text, "{%${1} endcall ${2}%}");
    // A macro or the body of a call sees the variables outside that it reads, but minijinja overlooks those that it
    // slices, changes or sets an attribute of. So each begins by reading all, where it costs nothing.
    let set = Regex::new(r"%[-+]?\s*(?:set|for)\s+([\w\s,()]+)")?;
    let name = Regex::new(r"\w+")?;
    let mut names = BTreeSet::from(["loop"]);
    for variables in set.captures_iter(&text) {
        let words = name.find_iter(variables.get(1).map_or("", |names| names.as_str()));
        names.extend(words.map(|word| word.as_str()).take_while(|word| *word != "in"));
    }
    let read: String = names.into_iter().map(|name| format!("{{{{ {name} }}}}")).collect();
    let body = Regex::new(r"(?s)(\{%[-+]?\s*(?:macro|call)\b.*?)([-+]?%\})")?;
    Ok(body
        .replace_all(&text, format!("${{1}}%}}{{% if false %}}{read}{{% endif ${{2}}"))
        .into_owned())
}

/// Deep enough for what the parser and a value nested by a template need: no page of it is used before that.
const STACK: usize = 1 << 30;

/// Runs on a stack of its own, since templates of others may nest without a bound.
pub fn on_deep_stack<T: Send>(run: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, run)?;
        thread
            .join()
            .map_err(|_| std::io::Error::other("the chat template makes the program panic"))
    })
}

pub fn without_comments(source: &str) -> Result<String, regex::Error> {
    Ok(Regex::new(r"(?s)\{#.*?#\}")?.replace_all(source, "").into_owned())
}

fn strftime_now(format: &str) -> Result<String, Error> {
    let items: Vec<Item> = StrftimeItems::new(format).collect();
    if items.contains(&Item::Error) {
        let message = format!("strftime_now: '{format}' is not a format of times");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    Ok(chrono::Local::now().format_with_items(items.iter()).to_string())
}

fn tojson(value: &Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    type Args = (Option<Value>, Option<Value>, Option<Value>, Option<Value>, Kwargs);
    let args = args.into_values();
    let (ensure_ascii, indent, separators, sort_keys, kwargs): Args = from_args(&args)?;
    let given = |positional: Option<Value>, name| match positional {
        Some(value) => Ok(value),
        None => kwargs.get::<Option<Value>>(name).map(Option::unwrap_or_default),
    };
    let ascii = given(ensure_ascii, "ensure_ascii")?.is_true();
    let indent = given(indent, "indent")?;
    let separators = given(separators, "separators")?;
    let sorted = given(sort_keys, "sort_keys")?.is_true();
    kwargs.assert_all_used()?;
    let indent = match indent.as_str() {
        Some(text) => Some(text.to_owned()),
        None if indent.is_none() || indent.is_undefined() => None,
        None => Some(" ".repeat(i64::try_from(indent)?.clamp(0, 64) as usize)),
    };
    let (comma, colon) = if separators.is_true() {
        let text = |place| separators.get_item_by_index(place).map(|text| python::text(&text));
        (text(0)?, text(1)?)
    } else {
        (if indent.is_some() { "," } else { ", " }.into(), ": ".into())
    };
    python::Json { ascii, indent, comma, colon, sorted }.dumps(value)
}

/// Arguments that Python takes by their places, and minijinja by their names.
fn named(args: Rest<ValueOrKwargs>, names: &[&str]) -> Result<Kwargs, Error> {
    let args = args.into_values();
    let (places, given): (&[Value], Kwargs) = from_args(&args)?;
    if places.len() > names.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let given = given.args().map(|name| Ok((name, given.get::<Value>(name)?)));
    let places = names.iter().zip(places).map(|(name, value)| Ok((*name, value.clone())));
    places.chain(given).collect()
}

fn default(
    value: &Value,
    other: Option<Value>,
    boolean: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let other = other.or(kwargs.get("default_value")?).unwrap_or_else(|| Value::from(""));
    let boolean = boolean.or(kwargs.get("boolean")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let absent = python::is_undefined(value) || boolean && !value.is_true();
    Ok(if absent { other } else { value.clone() })
}

fn indent(
    text: String,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let width = width.or(kwargs.get("width")?).unwrap_or_else(|| Value::from(4));
    let first = first.or(kwargs.get("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let space = match width.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(i64::try_from(width)?.clamp(0, 1 << 10) as usize),
    };
    let text = text + "\n";
    let lines = methods::lines(&text, false).into_iter().enumerate().map(|(place, line)| {
        let inner = if place == 0 { first } else { blank || !line.is_empty() };
        format!("{}{line}", if inner { &space } else { "" })
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// A text as the filters `int` and `float` read it.
fn number(text: &str) -> Option<f64> {
    text.trim().replace('_', "").parse().ok()
}

fn int(
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let default = default.or(kwargs.get("default")?).unwrap_or(Value::from(0));
    let base = base.or(kwargs.get("base")?).unwrap_or(10);
    kwargs.assert_all_used()?;
    if value.is_undefined() {
        value.get_attr("x")?;
    }
    if !(2..=36).contains(&base) {
        return Ok(default);
    }
    let whole = value.as_str().and_then(|text| {
        let text = text.trim().replace('_', "").to_lowercase();
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => ("-", digits),
            None => ("", text.strip_prefix('+').unwrap_or(&text)),
        };
        let prefix = [(16, "0x"), (8, "0o"), (2, "0b")].iter().find(|(of, _)| *of == base);
        let digits = prefix.and_then(|(_, prefix)| digits.strip_prefix(prefix)).unwrap_or(digits);
        i64::from_str_radix(&format!("{sign}{digits}"), base).ok()
    });
    let rounded = || {
        let number = match value.as_str() {
            Some(text) => number(text),
            None => python::as_float(value),
        };
        number.filter(|number| number.is_finite()).map(|number| number.trunc() as i128)
    };
    Ok(match value.kind() {
        ValueKind::Bool => Value::from(i64::from(value.is_true())),
        ValueKind::Number if value.is_integer() => value.clone(),
        _ => match whole {
            Some(whole) => Value::from(whole),
            None => rounded().map_or(default, |number| {
                i64::try_from(number).map_or(Value::from(number), Value::from)
            }),
        },
    })
}

fn float(value: &Value, default: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let default = default.or(kwargs.get("default")?).unwrap_or(Value::from(0.));
    kwargs.assert_all_used()?;
    if value.is_undefined() {
        value.get_attr("x")?;
    }
    let number = match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::String => number(value.as_str().unwrap_or_default()),
        _ => f64::try_from(value.clone()).ok().or(python::as_float(value)),
    };
    Ok(number.map_or(default, Value::from))
}
