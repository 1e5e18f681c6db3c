//! Continue text, token by token.
//!
//! `cargo run --example generate` asks a tiny model that learns the licence first.
//! `cargo run --release --example generate -- PROMPT MODEL_DIR [ADAPTER_DIR]` asks a model from Hugging Face.
//! `ln-tuning generate` does more: chat templates, and several adapters side by side.

mod tiny;

use std::fmt::Display;
use std::io::Write;

use anyhow::{anyhow, bail, Result};
use ln_tuning::device::best_device;
use ln_tuning::models::{Decoder, GenerateOptions, Model};
use ln_tuning::LnTuningModel;
use tch::Tensor;
use tokenizers::Tokenizer;

fn main() -> Result<()> {
    let device = best_device();
    let options = GenerateOptions::default().max_new_tokens(60).temperature(0.5).top_p(0.9);
    let args: Vec<String> = std::env::args().skip(1).collect();
    let new = match args.as_slice() {
        [] => {
            let (_vs, model) = tiny::decoder(include_str!("../LICENSE-MIT"), device)?;
            let prompt = "Permission is ";
            print!("{prompt}");
            let ids = Tensor::from_slice(&tiny::tokens(prompt)).view([1, -1]).to_device(device);
            model.generate_streaming(&ids, &options, |tokens| show(char::from(tokens[0] as u8)))?
        }
        [prompt, dir, adapter @ ..] if adapter.len() < 2 => {
            let (vs, model) = Decoder::from_pretrained(dir, device, None)?;
            if let [adapter] = adapter {
                LnTuningModel::from_pretrained(&vs, adapter)?;
            }
            let failed = |error| anyhow!("{dir}/tokenizer.json: {error}");
            let mut tokenizer =
                Tokenizer::from_file(format!("{dir}/tokenizer.json")).map_err(failed)?;
            tokenizer.with_padding(None).with_truncation(None).map_err(failed)?;
            let encoding = tokenizer.encode(prompt.as_str(), true).map_err(failed)?;
            let ids: Vec<i64> = encoding.get_ids().iter().map(|id| i64::from(*id)).collect();
            let ids = Tensor::from_slice(&ids).view([1, -1]).to_device(device);
            print!("{prompt}");
            // A character may take several tokens: the stream gives text when it is whole.
            let mut text = tokenizer.decode_stream(true);
            model.generate_streaming(&ids, &options, |tokens| {
                text.step(tokens[0] as u32).is_ok_and(|text| show(text.unwrap_or_default()))
            })?
        }
        _ => bail!("expected no argument, or PROMPT MODEL_DIR [ADAPTER_DIR]"),
    };
    println!("\n({} tokens)", new.numel());
    Ok(())
}

/// Prints text at once; generation goes on while this is true.
fn show(text: impl Display) -> bool {
    print!("{text}");
    std::io::stdout().flush().is_ok()
}
