//! Damage to files: to the values of JSON, to the header of safetensors, to lines, to bytes, to the directory.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use fastrand::Rng;
use serde_json::{json, Map, Value};

/// Damages one to three things in a directory.
pub fn directory(dir: &Path, rng: &mut Rng) -> Result<()> {
    for _ in 0..=rng.usize(..3) {
        let files = crate::files::of(dir)?;
        let Some(path) = pick(rng, &files) else { return Ok(()) };
        match rng.u8(..40) {
            0 => fs::remove_file(path)?,
            1 => {
                fs::remove_file(path)?;
                fs::create_dir(path)?;
            }
            2 => {
                let other = pick(rng, &files).expect("there is one");
                fs::write(path, fs::read(other)?)?;
            }
            _ => file(path, rng)?,
        }
    }
    Ok(())
}

/// Damages a file as befits its name.
pub fn file(path: &Path, rng: &mut Rng) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("'{}'", path.display()))?;
    let name = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let damaged = match name {
        _ if rng.u8(..8) == 0 => self::bytes(bytes, rng),
        "json" => json_text(&bytes, rng),
        "jsonl" => lines(&bytes, rng, json_text),
        "safetensors" => safetensors(&bytes, rng),
        "gguf" => gguf(bytes, rng),
        "txt" | "csv" | "jinja" | "yaml" => lines(&bytes, rng, words),
        _ => self::bytes(bytes, rng),
    };
    Ok(fs::write(path, damaged)?)
}

fn json_text(bytes: &[u8], rng: &mut Rng) -> Vec<u8> {
    let Ok(mut all) = serde_json::from_slice::<Value>(bytes) else {
        return self::bytes(bytes.to_vec(), rng);
    };
    for _ in 0..=rng.usize(..2) {
        value(&mut all, rng);
    }
    all.to_string().into_bytes()
}

/// Damages a value somewhere below `root`.
fn value(root: &mut Value, rng: &mut Rng) {
    let mut at = root;
    // Down to a random depth.
    while rng.u8(..5) > 0 {
        let inner = match at {
            Value::Array(items) if !items.is_empty() => items.len(),
            Value::Object(map) if !map.is_empty() => map.len(),
            _ => break,
        };
        let chosen = rng.usize(..inner);
        at = match at {
            Value::Array(items) => &mut items[chosen],
            Value::Object(map) => map.values_mut().nth(chosen).expect("in range"),
            _ => unreachable!("only these have an inside"),
        };
    }
    match at {
        Value::Object(map) if !map.is_empty() && rng.u8(..4) > 0 => members(map, rng),
        Value::Array(items) if !items.is_empty() && rng.u8(..4) > 0 => {
            let (one, other) = (rng.usize(..items.len()), rng.usize(..items.len()));
            match rng.u8(..4) {
                0 => drop(items.remove(one)),
                1 => items.push(items[one].clone()),
                2 => items.swap(one, other),
                _ => items[one] = extreme(rng),
            }
        }
        Value::String(text) if rng.bool() => {
            let damaged = words(text.as_bytes(), rng);
            *text = String::from_utf8_lossy(&damaged).into_owned();
        }
        Value::Number(number) if rng.bool() => {
            let number = number.as_i64().unwrap_or_default();
            *at = json!(match rng.u8(..5) {
                0 => number.wrapping_add(1),
                1 => number.wrapping_sub(1),
                2 => number.wrapping_neg(),
                3 => number.wrapping_mul(2),
                _ => number.wrapping_mul(1 << rng.u8(..63)),
            });
        }
        other => *other = extreme(rng),
    }
}

fn members(map: &mut Map<String, Value>, rng: &mut Rng) {
    let keys: Vec<String> = map.keys().cloned().collect();
    let (one, other) = (pick(rng, &keys).expect("not empty"), pick(rng, &keys).expect("not empty"));
    match rng.u8(..6) {
        0 => drop(map.remove(one)),
        1 => {
            let copy = map[one].clone();
            map.insert(other.clone(), copy);
        }
        2 => {
            let moved = map.remove(one).expect("it is there");
            map.insert(String::from_utf8_lossy(&words(one.as_bytes(), rng)).into_owned(), moved);
        }
        3 => drop(map.insert(pick(rng, &WORDS).expect("some").to_string(), extreme(rng))),
        _ => drop(map.insert(one.clone(), extreme(rng))),
    }
}

/// A value that is likely to be wrong.
fn extreme(rng: &mut Rng) -> Value {
    match rng.u8(..24) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(false),
        3 => json!(0),
        4 => json!(-1),
        5 => json!(1),
        6 => json!(i64::MAX),
        7 => json!(i64::MIN),
        8 => json!(u64::MAX),
        9 => json!(1_i64 << rng.u8(..62)),
        10 => json!(1e308),
        11 => json!(-0.5),
        12 => json!(1e-320),
        13 => json!(""),
        14 => json!([]),
        15 => json!({}),
        16 => json!("x".repeat(1 << rng.u8(..16))),
        17 => (0..rng.usize(..100)).fold(json!(1), |inner, _| json!([inner])),
        18 => (0..rng.usize(..100)).fold(json!(1), |inner, _| json!({"a": inner})),
        19 => json!(vec![0; 1 << rng.u8(..12)]),
        20 => json!([1, "a", null]),
        21 => json!({"a": 1}),
        22 => json!(rng.i64(..)),
        _ => json!(pick(rng, &WORDS).expect("some")),
    }
}

/// Words that mean something somewhere, and characters that often go wrong.
const WORDS: [&str; 44] = [
    "weight",
    "bias",
    "default",
    "norm",
    "layers.0",
    "..",
    "/",
    "\\",
    "\0",
    "\n",
    "\u{feff}",
    "é",
    "🦀",
    "null",
    "NaN",
    "Infinity",
    "true",
    "LORA",
    "LN_TUNING",
    "float16",
    "BF16",
    "F64",
    "I64",
    "shape",
    "dtype",
    "data_offsets",
    "__metadata__",
    "base_model.model.",
    "{{",
    "}}",
    "{%",
    "%}",
    "{{ messages[0]['content'] }}",
    "{% for m in messages %}",
    "{% endfor %}",
    "{% if x %}",
    "|",
    ".*",
    "(",
    "messages",
    "content",
    "role",
    "&a [*a, *a]",
    ": ",
];

/// The header of a safetensors file is damaged as JSON, its length and its data as bytes.
fn safetensors(bytes: &[u8], rng: &mut Rng) -> Vec<u8> {
    let length = bytes.get(..8).and_then(|length| length.try_into().ok()).map(u64::from_le_bytes);
    let header = length.and_then(|length| bytes.get(8..8 + usize::try_from(length).ok()?));
    let Some(header) = header else { return self::bytes(bytes.to_vec(), rng) };
    let rest = &bytes[8 + header.len()..];
    let header = json_text(header, rng);
    let length = match rng.u8(..10) {
        0 => rng.u64(..),
        1 => header.len() as u64 + 1,
        _ => header.len() as u64,
    };
    let rest = match rng.u8(..6) {
        0 => self::bytes(rest.to_vec(), rng),
        _ => rest.to_vec(),
    };
    [&length.to_le_bytes()[..], &header, &rest].concat()
}

/// A number in the header of a GGUF file becomes another one; or a byte does.
fn gguf(mut bytes: Vec<u8>, rng: &mut Rng) -> Vec<u8> {
    // Headers of small files are in their first half.
    let at = rng.usize(..bytes.len() / 2 + 1);
    let width = if rng.bool() { 8 } else { 4 };
    let Some(number) = bytes.get_mut(at..at + width) else { return self::bytes(bytes, rng) };
    let own = number.iter().rev().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
    let other = match rng.u8(..10) {
        0 => 0,
        1 => own.wrapping_add(1),
        2 => own.wrapping_sub(1),
        3 => own.wrapping_mul(2),
        4 => 1 << rng.u8(..64),
        5 => u64::MAX >> rng.u8(..34),
        6 => u64::from(rng.u8(..45)),
        _ => return self::bytes(bytes, rng),
    };
    number.copy_from_slice(&other.to_le_bytes()[..width]);
    bytes
}

/// Damages lines, or one of them in its own way.
fn lines(bytes: &[u8], rng: &mut Rng, own: impl Fn(&[u8], &mut Rng) -> Vec<u8>) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let (one, other) = (rng.usize(..lines.len()), rng.usize(..lines.len()));
    match rng.u8(..8) {
        0 => drop(lines.remove(one)),
        1 => lines.insert(other, lines[one].clone()),
        2 => lines.swap(one, other),
        3 => lines.insert(one, Vec::new()),
        _ => lines[one] = own(&lines[one], rng),
    }
    lines.join(&b'\n')
}

/// Puts a word into a text, takes characters out, or repeats a part.
fn words(text: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut text = text.to_vec();
    let at = rng.usize(..=text.len());
    let end = (at + rng.usize(..6)).min(text.len());
    match rng.u8(..4) {
        0 => drop(text.drain(at..end)),
        1 => {
            let part = text[at..end].repeat(1 << rng.u8(..10));
            text.splice(at..at, part);
        }
        _ => drop(text.splice(at..end, pick(rng, &WORDS).expect("some").bytes())),
    }
    text
}

/// Flips, cuts off, doubles or fills bytes.
fn bytes(mut bytes: Vec<u8>, rng: &mut Rng) -> Vec<u8> {
    if bytes.is_empty() {
        return (0..rng.usize(..64)).map(|_| rng.u8(..)).collect();
    }
    let at = rng.usize(..bytes.len());
    match rng.u8(..5) {
        0 => bytes.truncate(at),
        1 => bytes[at] = rng.u8(..),
        2 => bytes[at] ^= 1 << rng.u8(..8),
        3 => {
            let end = (at + rng.usize(..64)).min(bytes.len());
            let part = bytes[at..end].to_vec();
            bytes.splice(at..at, part);
        }
        _ => {
            let end = (at + rng.usize(..16)).min(bytes.len());
            bytes[at..end].fill(rng.u8(..));
        }
    }
    bytes
}

/// One of several things.
pub fn pick<'a, T>(rng: &mut Rng, all: &'a [T]) -> Option<&'a T> {
    if all.is_empty() {
        None
    } else {
        Some(&all[rng.usize(..all.len())])
    }
}
