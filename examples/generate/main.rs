//! Continues text with a model and its adapters, streaming; several answers are shown side by side.
//!
//! `cargo run --release --example generate -- --model DIR [--adapter NAME=DIR …] --prompt TEXT`

#[path = "../finetune_lm/chat.rs"]
mod chat;
mod columns;
#[path = "../finetune_lm/special.rs"]
mod special;

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{anyhow, ensure, Context, Result};
use chat::ChatTemplate;
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use ln_tuning::device::best_device;
use ln_tuning::models::{Decoder, GenerateOptions};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::{AdapterOptions, LnTuningModel, LoadOptions};
use tch::{Device, Kind, Tensor};
use tokenizers::Tokenizer;

/// Continue text with a model, and with adapters on it.
#[derive(Parser)]
struct Args {
    /// The directory of a language model, with a tokenizer.json
    #[arg(long)]
    model: PathBuf,
    /// A PEFT directory under a name; several are answered side by side
    #[arg(long = "adapter", value_name = "NAME=DIR")]
    adapters: Vec<String>,
    /// Shows the base's answer beside those of the adapters
    #[arg(long)]
    base: bool,
    /// What is continued; without it, the standard input
    #[arg(long)]
    prompt: Option<String>,
    /// The prompt is a message of a user, for the model's chat template
    #[arg(long)]
    chat: bool,
    /// What the template gets as the system's message
    #[arg(long, requires = "chat")]
    system: Option<String>,
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(i64).range(1..))]
    max_new_tokens: i64,
    /// 0: the likeliest token each time
    #[arg(long, default_value_t = 0.)]
    temperature: f64,
    /// Draws from so many of the likeliest tokens only
    #[arg(long)]
    top_k: Option<i64>,
    /// Draws from the fewest tokens that together are this likely
    #[arg(long, default_value_t = 1.)]
    top_p: f64,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Of the model; without it bf16 on a GPU, and what the files hold on a CPU
    #[arg(long)]
    kind: Option<KindName>,
    /// Generate on the CPU even where there is a CUDA device
    #[arg(long)]
    cpu: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindName {
    F32,
    Bf16,
    F16,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let adapters = args.adapters.iter().map(|adapter| {
        let (name, dir) = adapter
            .split_once('=')
            .with_context(|| format!("--adapter '{adapter}', expected NAME=DIR"))?;
        Ok((name.to_owned(), PathBuf::from(dir)))
    });
    let adapters = adapters.collect::<Result<Vec<_>>>()?;
    let device = if args.cpu { Device::Cpu } else { best_device() };
    let kind = match args.kind {
        Some(KindName::F32) => Some(Kind::Float),
        Some(KindName::Bf16) => Some(Kind::BFloat16),
        Some(KindName::F16) => Some(Kind::Half),
        None => (device != Device::Cpu).then_some(Kind::BFloat16),
    };
    let path = args.model.join("tokenizer.json");
    let tokenizer =
        Tokenizer::from_file(&path).map_err(|error| anyhow!("'{}': {error}", path.display()))?;
    let ids = prompt_ids(&args, &tokenizer)?.to_device(device);

    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "loading {bar:30} {bytes}/{total_bytes} {eta} left",
    )?);
    let shown = bar.clone();
    let files = ModelFiles::open(&args.model)?.with_progress(move |done, total| {
        shown.set_length(total);
        shown.set_position(done);
    });
    let model_type = files.model_type().unwrap_or_default().to_owned();
    let (vs, model) = Decoder::from_files(&files, device, kind)?;
    bar.finish_and_clear();
    let load = LoadOptions::default().adapter(AdapterOptions::default().model_type(model_type));
    let mut tuned: Option<LnTuningModel> = None;
    for (name, dir) in &adapters {
        match &mut tuned {
            Some(tuned) => drop(tuned.load_adapter(dir, name, &load)?),
            None => tuned = Some(LnTuningModel::from_pretrained_with(&vs, dir, name, &load)?.0),
        }
    }

    let mut stop = special::eos_of_model(&args.model)?;
    let config = special::tokenizer_config(&args.model)?;
    let end = special::special(&config, "eos_token").and_then(|t| tokenizer.token_to_id(&t));
    stop.extend(end.map(i64::from));
    let options = GenerateOptions::default()
        .max_new_tokens(args.max_new_tokens)
        .temperature(args.temperature)
        .top_k(args.top_k)
        .top_p(args.top_p)
        .seed(args.seed)
        .stop_tokens(stop);
    let answer = |stream: bool| generate(&model, &tokenizer, &ids, &options, stream);
    let Some(mut tuned) = tuned else {
        return answer(true).map(drop);
    };
    let mut answers = Vec::new();
    let several = adapters.len() + usize::from(args.base) > 1;
    if args.base {
        answers.push(("base".to_owned(), tuned.with_disabled(|| answer(!several))??));
    }
    for (name, _) in &adapters {
        tuned.set_adapter(name)?;
        answers.push((name.clone(), answer(!several)?));
    }
    if several {
        print!("{}", columns::side_by_side(&answers, columns::width()));
    }
    Ok(())
}

/// `[1, length]`.
fn prompt_ids(args: &Args, tokenizer: &Tokenizer) -> Result<Tensor> {
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None => {
            if std::io::stdin().is_terminal() {
                eprintln!("type the prompt, and Ctrl-D behind it");
            }
            let mut prompt = String::new();
            std::io::stdin().read_to_string(&mut prompt).context("the prompt")?;
            prompt
        }
    };
    let (text, special) = match args.chat {
        false => (prompt, true),
        true => {
            let chat = ChatTemplate::open(&args.model)?.with_context(|| {
                format!("'{}' has no chat template: leave out --chat", args.model.display())
            })?;
            let message =
                |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
            let mut messages: Vec<_> =
                args.system.iter().map(|system| message("system", system)).collect();
            messages.push(message("user", &prompt));
            (chat.render(&messages, true)?, false)
        }
    };
    let encoding = tokenizer.encode(text, special).map_err(|error| anyhow!(error))?;
    let ids: Vec<i64> = encoding.get_ids().iter().map(|id| i64::from(*id)).collect();
    ensure!(!ids.is_empty(), "the prompt is empty");
    Ok(Tensor::f_from_slice(&ids)?.f_view([1, -1])?)
}

/// The answer's text, which is shown as it comes if `stream` says so.
fn generate(
    model: &Decoder,
    tokenizer: &Tokenizer,
    ids: &Tensor,
    options: &GenerateOptions,
    stream: bool,
) -> Result<String> {
    let mut decoder = tokenizer.decode_stream(true);
    let (mut answer, mut new, mut failed) = (String::new(), Vec::new(), None);
    let start = Instant::now();
    let _ = model.generate(ids, options, |tokens| {
        new.push(tokens[0] as u32);
        match decoder.step(tokens[0] as u32) {
            Ok(text) => {
                let text = text.unwrap_or_default();
                if stream {
                    print!("{text}");
                    let _ = std::io::stdout().flush();
                }
                answer += &text;
                true
            }
            Err(error) => {
                failed = Some(anyhow!(error));
                false
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error.context("a token cannot be decoded"));
    }
    let seconds = start.elapsed().as_secs_f64();
    // The stream holds back a character whose last bytes never came.
    let whole = tokenizer.decode(&new, true).map_err(|error| anyhow!(error))?;
    if stream {
        println!("{}", whole.strip_prefix(&answer).unwrap_or_default());
    }
    eprintln!("{} tokens, {:.1} a second", new.len(), new.len() as f64 / seconds);
    Ok(whole)
}
