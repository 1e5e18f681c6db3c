//! Patterns and what replaces their matches. What they select is compared with Python by a test of the library.

use std::fs;
use std::path::Path;

use anyhow::Result;
use fastrand::Rng;
use ln_tuning::{LnTuningConfig, LnTuningModel, SaveOptions};
use tch::nn::{Init, VarStore};
use tch::Device;

use super::Target;
use crate::damage::pick;

pub struct Pattern;

/// Patterns that people write.
const WRITTEN: &[&str] = &[
    r".*norm",
    r"layers\.(norm|a+)",
    r"(?i).*\.NORM$",
    r"^layers\.(?!b)[a-z]*",
    r".*\b(?P<n>norm)\Z",
    r"(?x) layers \. .* # all",
    r"(layers)\.(\w+)",
    r"layers",
    r"\.(norm)",
];

const TOKENS: &[&str] = &[
    "a",
    "layers",
    "norm",
    ".",
    ".*",
    ".+",
    r"\.",
    "*",
    "+",
    "?",
    "*?",
    "*+",
    "{2}",
    "{1,2}",
    "{,9}",
    "{999}",
    "{4294967295}",
    "|",
    "(",
    ")",
    "(?:",
    "(?>",
    "(?=",
    "(?!",
    "(?<=",
    "(?<!",
    "(?P<n>",
    "(?P=n)",
    "(?i)",
    "(?i:",
    "(?-i:",
    "(?x)",
    "(?a:",
    "(?#c)",
    "^",
    "$",
    r"\A",
    r"\Z",
    r"\b",
    r"\B",
    r"\d",
    r"\W",
    r"\s",
    r"\p{L}",
    r"\N{x}",
    r"\1",
    r"\0",
    r"\141",
    r"\x61",
    r"\ud800",
    "\\",
    "[",
    "]",
    "[^",
    "[a-z]",
    "[]a]",
    "[[:alpha:]]",
    "[a&&b]",
    "[z-a]",
    "(a*)*",
    "(a|b|ab)*",
    "(a+)+",
    r"(\w{9}){9}",
    "é",
    "ſ",
    "K",
    "𐐀",
    " ",
    "\n",
    "\0",
    "(a)",
    r"\g<1>",
    r"\g<n>",
    r"\g<0>",
];

impl Target for Pattern {
    fn make(&self, dir: &Path, rng: &mut Rng) -> Result<()> {
        for (name, most) in [("pattern.txt", 12), ("replacement.txt", 4)] {
            let mut text: String = if name == "pattern.txt" && rng.bool() {
                pick(rng, WRITTEN).expect("some").to_string()
            } else {
                (0..rng.usize(..most)).map(|_| *pick(rng, TOKENS).expect("some")).collect()
            };
            let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
            if let (Some(at), true) = (pick(rng, &places), rng.bool()) {
                text.insert_str(*at, pick(rng, TOKENS).expect("some"));
            }
            if rng.u8(..20) == 0 {
                text = text.repeat(1 << rng.u8(..10));
            }
            fs::write(dir.join(name), text)?;
        }
        Ok(())
    }

    fn run(&self, dir: &Path) -> Result<()> {
        let pattern = fs::read_to_string(dir.join("pattern.txt"))?;
        let replacement = fs::read_to_string(dir.join("replacement.txt"))?;
        let vs = VarStore::new(Device::Cpu);
        for name in ["norm", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "é\n"] {
            let _ = (vs.root() / "layers" / name).var("weight", &[2], Init::Const(1.0));
        }
        // Dropped at once: one model at a time.
        let targeted =
            LnTuningModel::new(&vs, LnTuningConfig::default().target_pattern(&pattern)).map(drop);
        let model =
            LnTuningModel::new(&vs, LnTuningConfig::default().target_pattern(r"layers\.norm"))?;
        let options = SaveOptions::default().key_mapping([(&pattern, &replacement)]);
        model.save_pretrained_with(dir.join("saved"), &options)?;
        Ok(targeted?)
    }
}
