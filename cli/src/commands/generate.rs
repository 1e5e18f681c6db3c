//! Text continued, or answered, by a model and its adapters, streaming; several answers are shown side by side.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use anyhow::{ensure, Context, Result};
use ln_tuning::models::{GenerateOptions, Head, Load};
use ln_tuning::pretrained::{Frozen, ModelFiles};
use ln_tuning::{AdapterOptions, LnTuningModel, Precision};
use tch::{Device, Kind, Tensor};

use super::answers::{self, Answering, Row, BASE};
use super::key_mapping::KeyMapping;
use crate::device::{self, ModelKind};
use crate::language::answerer::Answerer;
use crate::language::encoder::{Prompt, TextEncoder};
use crate::language::mentions::MARK;
use crate::language::pictures::Picture;
use crate::language::settings::LossOn;
use crate::language::vision::{self, Grid, Vision};
use crate::text::files::TextFiles;
use crate::text::special;
use crate::train::memory;
use crate::{columns, progress};

/// Continue text with a language model, and with adapters on it; an encoder-decoder answers it
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// A language model or an encoder-decoder (t5, bart): a directory with a tokenizer.json, or a GGUF file
    #[arg(long)]
    model: PathBuf,
    /// A PEFT directory and a name for it. Several answer in one batch, and their answers are shown side by side, once all
    /// have ended
    #[arg(long = "adapter", value_name = "NAME=DIR")]
    adapters: Vec<String>,
    #[command(flatten)]
    key_mapping: KeyMapping,
    /// Show the base's answer beside those of the adapters
    #[arg(long)]
    base: bool,
    /// The text to continue, by all adapters; may be given many times. Default: the standard input
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// A text that one adapter continues, beside the others in the same batch; __base__ is the base. May be given many
    /// times
    #[arg(long, value_name = "NAME=TEXT")]
    prompt_for: Vec<String>,
    /// A picture, for a model of images and texts; may be given many times. The prompt says by <image> where each is;
    /// otherwise they come before it
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// Take the prompt as a user's message, through the model's chat template
    #[arg(long)]
    chat: bool,
    /// The system message for the template
    #[arg(long, requires = "chat")]
    system: Option<String>,
    /// At most this many tokens
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(i64).range(1..))]
    max_new_tokens: i64,
    /// Randomness of the choice; 0: the likeliest token each time
    #[arg(long, default_value_t = 0.)]
    temperature: f64,
    /// Draw from this many of the likeliest tokens only
    #[arg(long)]
    top_k: Option<i64>,
    /// Draw from the fewest tokens that together are this likely
    #[arg(long, default_value_t = 1.)]
    top_p: f64,
    /// The same seed gives the same text
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The kind of the model's weights. On a GPU, auto is f32 for a GGUF file in blocks if half of the free memory
    /// holds that
    #[arg(long, value_enum, default_value_t)]
    kind: ModelKind,
    /// The way in which the model's matrices are kept: mapped, device, gguf (the blocks of a GGUF file), int8, nf4,
    /// packed (the order that the CPU multiplies fastest with) or streamed; or two of them, as nf4,streamed
    #[arg(long, value_name = "HOW", default_value_t)]
    base_weights: Frozen,
    /// auto (a CUDA device if there is one), cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// The same as --device cpu
    #[arg(long, conflicts_with = "device")]
    cpu: bool,
}

const EXAMPLE: &str = "\
Example:
  ln-tuning generate --model Llama-3.2-1B --adapter mine=tuned/adapter --prompt 'Once upon a time'
  ln-tuning generate --model Llama-3.2-1B --adapter a=poetry --adapter b=prose --prompt-for 'a=Shall I' --prompt-for 'b=It was'
  ln-tuning generate --model SmolLM2-135M-Instruct.Q4_1.gguf --chat --prompt 'What is the capital of France?'
  ln-tuning generate --model llava-1.5-7b-hf --chat --image cat.png --prompt 'What is the animal doing?'";

/// Helps where memory is not enough.
const SMALLER: &str =
    "Give fewer or shorter prompts, a smaller --max-new-tokens, --kind bf16, --base-weights nf4, or another --device, such as cpu";

pub fn run(args: &Args) -> Result<()> {
    generated(args).map_err(|error| memory::explained(error, SMALLER))
}

fn generated(args: &Args) -> Result<()> {
    let adapters = args.adapters.iter().map(|adapter| {
        let (name, dir) = adapter
            .split_once('=')
            .with_context(|| format!("--adapter '{adapter}', expected NAME=DIR"))?;
        Ok((name.to_owned(), PathBuf::from(dir)))
    });
    let adapters = adapters.collect::<Result<Vec<_>>>()?;
    args.key_mapping.check(!adapters.is_empty())?;
    let device = if args.cpu { Device::Cpu } else { device::named(&args.device)? };
    let files = ModelFiles::open(&args.model)?;
    let words = TextFiles::of(&files)?;
    let encoder = TextEncoder::open(&files, &words, false, LossOn::Assistant)?;
    let tokenizer = encoder.tokenizer();
    let pictures: Vec<Picture> = args.images.iter().cloned().map(Picture::File).collect();
    ensure!(
        pictures.is_empty() || encoder.vision.is_some(),
        "'{}' ({}) takes text alone here: leave out --image, or give a model of images and texts ({})",
        args.model.display(),
        files.model_type().unwrap_or("unknown"),
        vision::model_types().join(", ")
    );
    let grids = encoder.grids(&pictures, Vision::grid)?;
    let Asked { prompts, rows } = asked(args, &adapters)?;
    let ids = prompts.iter().map(|prompt| prompt_ids(args, prompt, &encoder, &grids));
    let ids = ids.collect::<Result<Vec<_>>>()?;

    let kind = args.kind.answering(device, &files);
    let (files, bar) = progress::loading(files)?;
    let wanted = Load::on(device).kind(kind).frozen(args.base_weights).head(Head::LanguageModel);
    let (vs, model) = Answerer::load(files, &wanted)?;
    bar.finish_and_clear();
    let pixels = pixels(&encoder, pictures.iter().zip(grids.iter().copied()), model.kind())?;
    let pixels = pixels.map(|pixels| pixels.f_to_device(device)).transpose()?;
    // Nothing trains, so that no masters are needed; but an adapter without them has one kind.
    let floats = [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16];
    let mut kinds = vs.variables().into_values().map(|variable| variable.kind());
    let mixed = kinds.any(|kind| floats.contains(&kind) && kind != model.kind());
    let precision = if mixed { Precision::Master } else { Precision::Model };
    let load = AdapterOptions::default().precision(precision);
    let load = args.key_mapping.load_options().adapter(load);
    let mut tuned: Option<LnTuningModel> = None;
    for (name, dir) in &adapters {
        match &mut tuned {
            Some(tuned) => drop(tuned.load_adapter(dir, name, &load)?),
            None => tuned = Some(LnTuningModel::from_pretrained_with(&vs, dir, name, &load)?.0),
        }
    }

    let stops = special::eos_ids(&words, tokenizer)?;
    let options = GenerateOptions::default()
        .max_new_tokens(args.max_new_tokens)
        .temperature(args.temperature)
        .top_k(args.top_k)
        .top_p(args.top_p)
        .seed(args.seed)
        .stop_tokens(stops.iter().copied());
    let answering = Answering {
        model: &model,
        encoder: &encoder,
        options: &options,
        most: args.max_new_tokens.unsigned_abs(),
        stops: &stops,
        device,
        pixels: pixels.as_ref(),
        grids: &grids,
    };
    let answers = answering.answers(&ids, &rows, tuned.as_mut())?;
    if rows.len() > 1 {
        print!("{}", answers::table(&prompts, &rows, &answers, columns::width()));
    }
    Ok(())
}

/// The prompts, and who answers each.
struct Asked {
    prompts: Vec<String>,
    rows: Vec<Row>,
}

fn asked(args: &Args, adapters: &[(String, PathBuf)]) -> Result<Asked> {
    let mut prompts = args.prompt.clone();
    if prompts.is_empty() && args.prompt_for.is_empty() {
        if std::io::stdin().is_terminal() {
            eprintln!("type the prompt, then press Ctrl-D");
        }
        let mut prompt = String::new();
        std::io::stdin().read_to_string(&mut prompt).context("the prompt")?;
        prompts.push(prompt);
    }
    let mut names: Vec<&str> = adapters.iter().map(|(name, _)| name.as_str()).collect();
    if args.base || names.is_empty() {
        names.insert(0, BASE);
    }
    let each = (0..prompts.len()).flat_map(|prompt| names.iter().map(move |name| (prompt, *name)));
    let row = |(prompt, name): (usize, &str)| Row { prompt, name: name.to_owned() };
    let mut rows: Vec<Row> = each.map(row).collect();
    for prompt_for in &args.prompt_for {
        let (name, text) = prompt_for
            .split_once('=')
            .with_context(|| format!("--prompt-for '{prompt_for}', expected NAME=TEXT"))?;
        ensure!(
            name == BASE || adapters.iter().any(|(known, _)| known == name),
            "--prompt-for '{name}=…' names no adapter: give --adapter '{name}=DIR', or one of {BASE}{}",
            adapters.iter().map(|(known, _)| format!(", {known}")).collect::<String>()
        );
        rows.push(row((prompts.len(), name)));
        prompts.push(text.to_owned());
    }
    Ok(Asked { prompts, rows })
}

/// The ids of a prompt.
fn prompt_ids(
    args: &Args,
    prompt: &str,
    encoder: &TextEncoder,
    grids: &[Grid],
) -> Result<Vec<i64>> {
    // Without marks, pictures come first.
    let prompt = if encoder.marks().iter().any(|mark| prompt.contains(mark)) {
        prompt.to_owned()
    } else {
        format!("{}{prompt}", format!("{MARK}\n").repeat(grids.len()))
    };
    let prompt = if args.chat {
        ensure!(
            encoder.has_chat_template(),
            "'{}' has no chat template: leave out --chat",
            args.model.display()
        );
        let message =
            |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
        let mut messages: Vec<_> =
            args.system.iter().map(|system| message("system", system)).collect();
        messages.push(message("user", &prompt));
        Prompt::Chat(messages)
    } else {
        Prompt::Text(prompt)
    };
    let ids = encoder.prompt(&prompt, grids)?;
    let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
    ensure!(!ids.is_empty(), "the prompt is empty");
    Ok(ids)
}

/// The tiles of all pictures, in the model's kind.
fn pixels<'p>(
    encoder: &TextEncoder,
    pictures: impl ExactSizeIterator<Item = (&'p Picture, Grid)>,
    kind: Kind,
) -> Result<Option<Tensor>> {
    let Some(vision) = encoder.vision.as_ref().filter(|_| pictures.len() > 0) else {
        return Ok(None);
    };
    let pixels = pictures.map(|(picture, grid)| vision.pixels(picture, grid));
    let pixels = Tensor::f_cat(&pixels.collect::<Result<Vec<_>>>()?, 0)?;
    Ok(Some(pixels.f_to_kind(kind)?))
}
