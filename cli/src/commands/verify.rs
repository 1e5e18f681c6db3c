//! The outputs of a model beside those that Python made of the same inputs, and its training beside that of PEFT.

mod errors;
mod training;

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{ensure, Context, Result};
use ln_tuning::models::{AnyModel, Inputs, Load};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::{regular, LnTuningModel, SavedAdapter, DEFAULT_ADAPTER};
use serde_json::json;
use tch::{no_grad, Device, Kind, Tensor};

use super::key_mapping::KeyMapping;
use crate::device::{self, ModelKind};
use crate::pictures::{picture, Processor};
use crate::progress;
use errors::Errors;

/// Compare a model's outputs and its training with a reference made in Python
///
/// Exits with 0 if they are the same, 1 if they differ, 2 if they cannot be compared. A reference of --script holds
/// what is exact beside what PEFT computes: results may then err twice as much as PEFT's, and by one rounding.
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// The model: a directory with config.json and safetensors, or a GGUF file
    #[arg(long, value_name = "MODEL", required_unless_present = "script")]
    model: Option<PathBuf>,
    /// Inputs: `input_ids` (`attention_mask`, `token_type_ids`; `decoder_input_ids` and `decoder_attention_mask` of an
    /// encoder-decoder) or `pixel_values` (`image_sizes`, `image_grid_thw`), or both. Outputs: `logits` or `last_hidden_state`
    #[arg(long, value_name = "FILE.safetensors", required_unless_present = "script")]
    reference: Option<PathBuf>,
    /// A picture of the reference (--image of the script): its pixels as they are made here must be near the
    /// reference's; may be given many times, in their order
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// An adapter to attach first
    #[arg(long, value_name = "ADAPTER_DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    key_mapping: KeyMapping,
    /// The kind to compute in. Default: that of the files
    #[arg(long, alias = "dtype", value_enum)]
    kind: Option<ModelKind>,
    /// cpu, cuda, cuda:N or auto
    #[arg(long, default_value = "cpu")]
    device: String,
    /// The largest difference that counts as equal, for a reference without what is exact
    #[arg(long, default_value_t = 1e-4)]
    tolerance: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print a Python script that makes a reference, with transformers and PEFT
    #[arg(long, exclusive = true)]
    script: bool,
}

const EXAMPLE: &str = "\
Example:
  ln-tuning verify --script > reference.py
  python reference.py Llama-3.2-1B outputs.safetensors --adapter tuned/adapter --dtype float16
  ln-tuning verify --model Llama-3.2-1B --reference outputs.safetensors --adapter tuned/adapter --kind f16
  python reference.py llava-1.5-7b-hf cat.safetensors --image cat.png
  ln-tuning verify --model llava-1.5-7b-hf --reference cat.safetensors --image cat.png";

/// Pixels may be this far apart, some levels of 255: decoders of JPEG round in their own ways.
const MOST_APART: f64 = 0.1;

pub fn run(args: &Args) -> Result<bool> {
    let (Some(dir), Some(path)) = (&args.model, &args.reference) else {
        print!("{}", include_str!("verify/reference.py"));
        return Ok(true);
    };
    args.key_mapping.check(args.adapter.is_some())?;
    let device = device::named(&args.device)?;
    let kind = args.kind.and_then(|kind| kind.on(device));
    // Refuses what is no regular file.
    drop(regular::open(path)?);
    let reference = Tensor::read_safetensors(path)
        .with_context(|| format!("'{}' is not a safetensors file", path.display()))?;
    let moved = reference.into_iter().map(|(name, tensor)| {
        // Numbers are read here.
        let place = if tensor.dim() == 0 { Device::Cpu } else { device };
        Ok((name, tensor.f_to_device(place)?))
    });
    let reference: HashMap<String, Tensor> = moved.collect::<Result<_>>()?;
    let files = ModelFiles::open(dir)?;
    let model_type = files.model_type().unwrap_or_default().to_owned();
    let apart = match &*args.images {
        [] => None,
        images => Some(pixels_apart(&files, images, &reference)?),
    };
    let (files, bar) = progress::loading(files)?;
    let mut load = Load::on(device).kind(kind);
    if let Some(adapter) = &args.adapter {
        // The adapter may have the head, and the files none.
        let saved = SavedAdapter::open(adapter)?.key_mapping(args.key_mapping.rules.clone())?;
        if let Some((head, labels)) = saved.new_head(ModelFiles::open(dir)?)? {
            load = load.head(head);
            load = if labels.is_empty() { load } else { load.labels(labels) };
        }
    }
    let (vs, model) = AnyModel::from_files(files, &load)?;
    bar.finish_and_clear();
    let trains = reference.contains_key("steps");
    let options = args.key_mapping.load_options().is_trainable(trains);
    let adapter = args
        .adapter
        .as_ref()
        .map(|dir| LnTuningModel::from_pretrained_with(&vs, dir, DEFAULT_ADAPTER, &options));
    let adapter = adapter.transpose()?;

    let pixels = reference.get("pixel_values");
    let pixels = pixels.map(|pixels| pixels.f_to_kind(model.kind())).transpose()?;
    let inputs = inputs(&reference, pixels.as_ref());
    let (name, output, expected) = no_grad(|| compute(&model, inputs, &reference))?;
    let expected_kind = expected.f_kind()?;
    let mut shown = expected.f_ones_like()?.f_to_kind(Kind::Bool)?;
    // The output goes with the decoder's input where there is one.
    let decoded = reference.contains_key("decoder_input_ids");
    let mask = if decoded { "decoder_attention_mask" } else { "attention_mask" };
    if let Some(mask) = reference.get(mask).filter(|_| expected.dim() == 3) {
        // Outputs at padding do not count.
        shown = mask.f_to_kind(Kind::Bool)?.f_unsqueeze(-1)?.f_expand_as(&expected)?;
    }
    let zero = Tensor::f_zeros([0; 0], (Kind::Double, shown.device()))?;
    let counted = |x: Tensor| x.f_to_kind(Kind::Double)?.f_where_self(&shown, &zero);
    let (a, b) = (counted(output)?, counted(expected)?);
    let largest = |x: &Tensor| x.f_abs()?.f_max()?.f_double_value(&[]);
    let max_abs_diff = largest(&a.f_sub(&b)?)?;
    let max_rel_diff = max_abs_diff / largest(&b)?.max(f64::MIN_POSITIVE);
    let rows = shown.f_any_dim(-1, false)?;
    let same = a.f_argmax(-1, false)?.f_eq_tensor(&b.f_argmax(-1, false)?)?;
    let count = |x: &Tensor| x.f_sum(Kind::Int64)?.f_int64_value(&[]);
    let (same, rows) = (count(&same.f_logical_and(&rows)?)?, count(&rows)?);
    let argmax_agreement = same as f64 / rows.max(1) as f64;
    let mut compared = Vec::new();
    if let Some(exact) = reference.get(&format!("exact.{name}")) {
        compared.push(Errors::of(name, &a, &b, &counted(exact.shallow_clone())?)?);
    }
    if let (Some((tuned, _)), true) = (&adapter, trains) {
        compared.extend(training::compare(&model, tuned, inputs, &reference)?);
    }
    errors::judge(&mut compared, expected_kind);
    let ok = if compared.is_empty() {
        max_abs_diff <= args.tolerance
    } else {
        compared.iter().all(|errors| errors.ok)
    } && apart.is_none_or(|apart| apart <= MOST_APART);
    if args.json {
        let report = json!({
            "max_abs_diff": max_abs_diff,
            "max_rel_diff": max_rel_diff,
            "argmax_agreement": argmax_agreement,
            "compared": compared,
            "pixels_apart": apart,
            "ok": ok,
        });
        println!("{report:#}");
    } else {
        println!("{model_type} on {device:?}");
        let tolerance = format!(" (tolerance {:.1e})", args.tolerance);
        let tolerance = if compared.is_empty() { &tolerance } else { "" };
        println!("largest difference    {max_abs_diff:.3e}{tolerance}");
        println!("relative              {max_rel_diff:.3e}");
        if let Some(apart) = apart {
            println!("pixels differ by      {apart:.3e} (tolerance {MOST_APART:.1e})");
        }
        println!("argmax the same       {:.2} %", 100. * argmax_agreement);
        if !compared.is_empty() {
            errors::table(&compared).iter().for_each(|line| println!("{line}"));
        }
        println!("{}", if ok { "ok" } else { "NOT the same" });
    }
    Ok(ok)
}

/// The largest difference between pictures as they are prepared here and as the reference has them.
fn pixels_apart(
    files: &ModelFiles,
    images: &[PathBuf],
    reference: &HashMap<String, Tensor>,
) -> Result<f64> {
    let theirs = reference.get("pixel_values");
    let theirs =
        theirs.context("there is an --image, and the reference holds no 'pixel_values'")?;
    let processor = Processor::open(files)?;
    let pixels = |path: &PathBuf| Ok(processor.apply(&picture::read(path)?)?.values);
    let ours = Tensor::f_cat(&images.iter().map(pixels).collect::<Result<Vec<_>>>()?, 0)?;
    ensure!(
        ours.size() == theirs.size(),
        "the pictures are {:?} here, and {:?} in the reference: give those that it was made of, in their order",
        ours.size(),
        theirs.size()
    );
    let wide = |pixels: &Tensor| pixels.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double);
    Ok(wide(&ours)?.f_sub(&wide(theirs)?)?.f_abs()?.f_max()?.f_double_value(&[])?)
}

/// The inputs of a reference. Images are in the model's kind.
fn inputs<'a>(reference: &'a HashMap<String, Tensor>, pixels: Option<&'a Tensor>) -> Inputs<'a> {
    let given = |name: &str| reference.get(name);
    Inputs::default()
        .pixel_values(pixels)
        .image_sizes(given("image_sizes"))
        .image_grid_thw(given("image_grid_thw"))
        .attention_mask(given("attention_mask"))
        .token_type_ids(given("token_type_ids"))
        .input_ids(given("input_ids"))
        .decoder_ids(given("decoder_input_ids"))
        .decoder_attention_mask(given("decoder_attention_mask"))
}

/// The output's name, the output of the model, and that of Python.
fn compute(
    model: &AnyModel,
    inputs: Inputs,
    reference: &HashMap<String, Tensor>,
) -> Result<(&'static str, Tensor, Tensor)> {
    let need = |name: &str| {
        let names: Vec<&str> = reference.keys().map(String::as_str).collect();
        let given = reference.get(name);
        given.with_context(|| format!("the reference holds no '{name}', only {}", names.join(", ")))
    };
    // Logits where they are there, since they depend on all else.
    let logits = reference.contains_key("logits");
    let output = match (model, logits) {
        (AnyModel::Seq2Seq(_), true) => {
            need("decoder_input_ids")?;
            model.logits(inputs)?
        }
        // The decoder's where it has an input, else the encoder's, as in transformers.
        (AnyModel::Seq2Seq(model), false) if !reference.contains_key("decoder_input_ids") => {
            model.encode(inputs)?
        }
        (model, true) => model.logits(inputs)?,
        (model, false) => model.hidden_states(inputs)?,
    };
    let name = if logits { "logits" } else { "last_hidden_state" };
    let expected = need(name)?.shallow_clone();
    ensure!(
        output.size() == expected.size(),
        "the model's output has shape {:?}, the reference's {:?}",
        output.size(),
        expected.size()
    );
    Ok((name, output, expected))
}
