//! Greedy text of one prompt, and the time that it takes.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use ln_tuning::models::{Decoder, GenerateOptions, Model};
use serde_json::json;
use tch::{Device, Tensor};

use crate::{Dtype, On};

/// Generates greedily at batch 1; prints the tokens, the seconds, and those of loading, as JSON.
#[derive(Debug, clap::Args)]
pub struct Args {
    model: PathBuf,
    #[arg(long)]
    device: On,
    #[arg(long)]
    kind: Dtype,
    /// The ids of the prompt.
    #[arg(long, value_delimiter = ',')]
    prompt: Vec<i64>,
    #[arg(long)]
    tokens: i64,
}

pub fn run(args: &Args) -> Result<()> {
    let device = args.device.device()?;
    let start = Instant::now();
    let (_vs, model) = Decoder::from_pretrained(&args.model, device, args.kind.kind())?;
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
    let load = start.elapsed().as_secs_f64();
    let ids = Tensor::from_slice(&args.prompt).view([1, -1]).to_device(device);
    let generate = |tokens: i64| -> Result<(Vec<i64>, f64)> {
        let options = GenerateOptions::default().max_new_tokens(tokens).stop_tokens([]);
        let start = Instant::now();
        // Reading the ids waits for the device.
        let ids = model.generate(&ids, &options)?.to_device(Device::Cpu);
        let seconds = start.elapsed().as_secs_f64();
        Ok((Vec::try_from(&ids.view([-1]))?, seconds))
    };
    // Whatever is done once.
    generate(args.tokens.min(8))?;
    let (tokens, seconds) = generate(args.tokens)?;
    println!("{}", json!({"tokens": tokens, "seconds": seconds, "load": load}));
    Ok(())
}
