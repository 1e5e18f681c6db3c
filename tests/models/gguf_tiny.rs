//! Tiny GGUF files, made entry by entry.

use std::path::{Path, PathBuf};

use Entry::{Flags, Number, Text, Whole, Wholes};

/// A value of the metadata.
#[derive(Debug, Clone)]
pub enum Entry {
    Text(&'static str),
    Whole(u32),
    Number(f32),
    Flags(Vec<bool>),
    Wholes(Vec<u32>),
}

/// A GGUF file in the making: tensors are in f32, of random numbers.
#[derive(Debug, Clone)]
pub struct Gguf {
    pub entries: Vec<(String, Entry)>,
    tensors: Vec<(String, Vec<i64>)>,
}

impl Gguf {
    /// Two blocks of width 8, with 2 heads and 1 key-value head.
    pub fn llama() -> Self {
        let entries = [
            ("general.architecture", Text("llama")),
            ("general.name", Text("tiny")),
            ("llama.block_count", Whole(2)),
            ("llama.context_length", Whole(32)),
            ("llama.embedding_length", Whole(8)),
            ("llama.feed_forward_length", Whole(12)),
            ("llama.attention.head_count", Whole(2)),
            ("llama.attention.head_count_kv", Whole(1)),
            ("llama.attention.layer_norm_rms_epsilon", Number(1e-5)),
            ("tokenizer.ggml.eos_token_id", Whole(2)),
        ];
        let mut tensors = vec![("token_embd.weight".to_owned(), vec![10, 8])];
        for block in 0..2 {
            for (name, shape) in [
                ("attn_norm", &[8][..]),
                ("attn_q", &[8, 8]),
                ("attn_k", &[4, 8]),
                ("attn_v", &[4, 8]),
                ("attn_output", &[8, 8]),
                ("ffn_norm", &[8]),
                ("ffn_gate", &[12, 8]),
                ("ffn_up", &[12, 8]),
                ("ffn_down", &[8, 12]),
            ] {
                tensors.push((format!("blk.{block}.{name}.weight"), shape.to_vec()));
            }
        }
        tensors.push(("output_norm.weight".to_owned(), vec![8]));
        Gguf { entries: entries.map(|(key, entry)| (key.to_owned(), entry)).to_vec(), tensors }
    }

    pub fn with(mut self, key: &str, entry: Entry) -> Self {
        self.entries.retain(|(known, _)| known != key);
        self.entries.push((key.to_owned(), entry));
        self
    }

    /// The same as another architecture with the same tensors.
    pub fn granite() -> Self {
        let mut gguf = Self::llama().with("general.architecture", Text("granite"));
        for (key, _) in &mut gguf.entries {
            *key = key.replace("llama.", "granite.");
        }
        gguf
    }

    pub fn without(mut self, name: &str) -> Self {
        self.entries.retain(|(key, _)| key != name);
        self.tensors.retain(|(known, _)| known != name);
        self
    }

    pub fn tensor(mut self, name: &str, shape: &[i64]) -> Self {
        self.tensors.retain(|(known, _)| known != name);
        self.tensors.push((name.to_owned(), shape.to_vec()));
        self
    }

    pub fn write(&self, dir: &Path, name: &str) -> PathBuf {
        let text = |out: &mut Vec<u8>, text: &str| {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text.as_bytes());
        };
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        for (key, entry) in &self.entries {
            text(&mut out, key);
            match entry {
                Whole(value) => out.extend([4, *value].map(u32::to_le_bytes).concat()),
                Number(value) => out.extend([[6, 0, 0, 0], value.to_le_bytes()].concat()),
                Text(value) => {
                    out.extend(8_u32.to_le_bytes());
                    text(&mut out, value);
                }
                Flags(values) => {
                    out.extend([9_u32, 7].map(u32::to_le_bytes).concat());
                    out.extend((values.len() as u64).to_le_bytes());
                    out.extend(values.iter().map(|value| u8::from(*value)));
                }
                Wholes(values) => {
                    out.extend([9_u32, 4].map(u32::to_le_bytes).concat());
                    out.extend((values.len() as u64).to_le_bytes());
                    out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                }
            }
        }
        let mut data = Vec::new();
        for (name, shape) in &self.tensors {
            text(&mut out, name);
            out.extend((shape.len() as u32).to_le_bytes());
            out.extend(shape.iter().rev().flat_map(|size| size.to_le_bytes()));
            out.extend(0_u32.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            let count = shape.iter().product::<i64>();
            let is_factor = name.starts_with("rope_");
            let values = (0..count).map(|i| match (i * 7919 % 101) as f32 {
                _ if is_factor => 1. + i as f32,
                number => (number - 50.) / 100.,
            });
            data.extend(values.flat_map(f32::to_le_bytes));
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        let path = dir.join(name);
        std::fs::write(&path, out).unwrap();
        path
    }
}
