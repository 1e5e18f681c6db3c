//! GGUF files: as they are, and as models.

use std::path::Path;

use anyhow::{ensure, Result};
use fastrand::Rng;
use ln_tuning::gguf::{BlockType, GgufFile, GgufWriter, MetadataArray, MetadataValue, ValueType};
use ln_tuning::models::{AnyModel, Inputs};
use tch::{Device, Tensor};

use super::{Seeds, Target};
use crate::damage;

const FILE: &str = "model.gguf";

/// A small model, and files with tensors of every type.
pub struct Gguf(Seeds);

impl Gguf {
    pub fn new() -> Result<Self> {
        let mut seeds = Seeds::new()?;
        // Twice, since damage to it reaches more.
        for name in ["llama", "again"] {
            llama()?.write(seeds.add(name).join(FILE))?;
        }
        types()?.write(seeds.add("types").join(FILE))?;
        Ok(Gguf(seeds))
    }
}

impl Target for Gguf {
    fn make(&self, dir: &Path, rng: &mut Rng) -> Result<()> {
        self.0.copy(dir, rng)?;
        for _ in 0..=rng.usize(..3) {
            damage::file(&dir.join(FILE), rng)?;
        }
        Ok(())
    }

    fn run(&self, dir: &Path) -> Result<()> {
        let path = dir.join(FILE);
        let file = GgufFile::open(&path)?;
        let metadata = file.metadata();
        for (key, value) in metadata.iter() {
            let _ = (metadata.str(key), metadata.strings(key), metadata.numbers(key));
            if let MetadataValue::Array(array) = value {
                assert!(array.iter().count() <= array.len(), "more values than there are");
            }
        }
        for tensor in file.tensors() {
            if tensor.block_type.is_readable() {
                assert_eq!(file.tensor(tensor)?.size(), tensor.shape, "another shape");
            }
        }
        // Whatever is read can be written, and is read as the same.
        let copy = dir.join("copy.gguf");
        GgufWriter::copy_of(&file)?.write(&copy)?;
        let copied = GgufFile::open(&copy)?;
        ensure!(copied.tensors().len() == file.tensors().len(), "another number of tensors");
        for (a, b) in copied.tensors().iter().zip(file.tensors()) {
            assert!(copied.bytes(a)? == file.bytes(b)?, "other bytes of '{}'", a.name);
        }
        let (_vs, model) = AnyModel::from_pretrained(&path, Device::Cpu, None)?;
        let _hidden =
            model.hidden_states(Inputs::new(&Tensor::from_slice(&[1_i64, 2]).view([1, 2])))?;
        Ok(())
    }
}

/// A llama with one block.
fn llama() -> Result<GgufWriter<'static>> {
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", "llama")?;
    writer.set("general.alignment", MetadataValue::U32(32))?;
    for (key, number) in [
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", 32),
        ("feed_forward_length", 32),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("rope.dimension_count", 16),
        ("vocab_size", 4),
    ] {
        writer.set(&format!("llama.{key}"), MetadataValue::U32(number))?;
    }
    writer.set("llama.attention.layer_norm_rms_epsilon", MetadataValue::F32(1e-5))?;
    writer.set("llama.rope.freq_base", MetadataValue::F32(1e4))?;
    let texts = ["<s>", "</s>", "a", "né"].map(MetadataValue::from);
    writer.set("tokenizer.ggml.model", "gpt2")?;
    writer.set("tokenizer.ggml.tokens", MetadataArray::new(ValueType::String, &texts)?)?;
    let kinds = vec![MetadataValue::I32(1); 4];
    writer.set("tokenizer.ggml.token_type", MetadataArray::new(ValueType::I32, &kinds)?)?;
    writer.set("tokenizer.ggml.eos_token_id", MetadataValue::U32(1))?;
    for (name, block_type, shape) in [
        ("token_embd", BlockType::Q8_0, &[4, 32][..]),
        ("output_norm", BlockType::F32, &[32]),
        ("blk.0.attn_norm", BlockType::F32, &[32]),
        ("blk.0.attn_q", BlockType::Q4_0, &[32, 32]),
        ("blk.0.attn_k", BlockType::Q4_1, &[16, 32]),
        ("blk.0.attn_v", BlockType::Q5_0, &[16, 32]),
        ("blk.0.attn_output", BlockType::Q5_1, &[32, 32]),
        ("blk.0.ffn_norm", BlockType::F32, &[32]),
        ("blk.0.ffn_gate", BlockType::IQ4_NL, &[32, 32]),
        ("blk.0.ffn_up", BlockType::F16, &[32, 32]),
        ("blk.0.ffn_down", BlockType::BF16, &[32, 32]),
    ] {
        add(&mut writer, &format!("{name}.weight"), block_type, shape)?;
    }
    Ok(writer)
}

/// A tensor of every type, and metadata of some.
fn types() -> Result<GgufWriter<'static>> {
    let mut writer = GgufWriter::new();
    let numbers: Vec<MetadataValue> = (0..5).map(MetadataValue::U64).collect();
    let numbers = MetadataArray::new(ValueType::U64, &numbers)?;
    let arrays = vec![MetadataValue::from(numbers); 3];
    writer.set("arrays", MetadataArray::new(ValueType::Array, &arrays)?)?;
    writer.set("flag", MetadataValue::Bool(true))?;
    for block_type in BlockType::ALL {
        let shape = [3, block_type.block_len() as i64];
        add(&mut writer, &block_type.to_string(), *block_type, &shape)?;
    }
    Ok(writer)
}

fn add(writer: &mut GgufWriter, name: &str, block_type: BlockType, shape: &[i64]) -> Result<()> {
    let weights = shape.iter().product::<i64>() as u64;
    let len = block_type.row_bytes(weights).expect("whole blocks");
    // Small halves and floats of any kind.
    let bytes: Vec<u8> = (0..len).map(|at| if at % 2 == 0 { at as u8 } else { 0x2c }).collect();
    Ok(writer.add(name, block_type, shape, bytes)?)
}
