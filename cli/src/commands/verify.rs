//! The outputs of a model beside those that Python made of the same inputs.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{bail, Context, Result};
use ln_tuning::models::{AnyModel, Inputs};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::{AdapterOptions, LnTuningModel, LoadOptions};
use serde_json::json;
use tch::{no_grad, Kind, Tensor};

use crate::device::{self, ModelKind};
use crate::progress;

/// Compare a model's outputs with a reference made in Python
///
/// Exits with 0 if they are the same, 1 if they differ, 2 if they cannot be compared.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  ln-tuning verify --model Llama-3.2-1B --reference outputs.safetensors"
)]
pub struct Args {
    /// The model: a directory with config.json and safetensors
    #[arg(long, value_name = "MODEL_DIR")]
    model: PathBuf,
    /// Inputs: `input_ids` (`attention_mask`, `token_type_ids`; `decoder_input_ids` and `decoder_attention_mask` of an
    /// encoder-decoder) or `pixel_values`. Outputs: `logits` or `last_hidden_state`
    #[arg(long, value_name = "FILE.safetensors")]
    reference: PathBuf,
    /// An adapter to attach first
    #[arg(long, value_name = "ADAPTER_DIR")]
    adapter: Option<PathBuf>,
    /// The kind to compute in. Default: that of the files
    #[arg(long, value_enum)]
    kind: Option<ModelKind>,
    /// cpu, cuda, cuda:N or auto
    #[arg(long, default_value = "cpu")]
    device: String,
    /// The largest difference that counts as equal
    #[arg(long, default_value_t = 1e-4)]
    tolerance: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<bool> {
    let device = device::named(&args.device)?;
    let kind = args.kind.and_then(|kind| kind.on(device));
    let path = &args.reference;
    let reference = Tensor::read_safetensors(path)
        .with_context(|| format!("'{}' is not a safetensors file", path.display()))?;
    let reference: HashMap<String, Tensor> =
        reference.into_iter().map(|(name, tensor)| (name, tensor.to_device(device))).collect();
    let files = ModelFiles::open(&args.model)?;
    let model_type = files.model_type().unwrap_or_default().to_owned();
    let (files, bar) = progress::loading(files)?;
    let (vs, model) = AnyModel::from_files(files, device, kind)?;
    bar.finish_and_clear();
    let adapter = args.adapter.as_ref().map(|dir| {
        let options = AdapterOptions::default().model_type(&model_type);
        let options = LoadOptions::default().adapter(options);
        LnTuningModel::from_pretrained_with(&vs, dir, "default", &options)
    });
    let _adapter = adapter.transpose()?;

    let (output, expected) = no_grad(|| compute(&model, &reference))?;
    let mut shown = expected.ones_like().to_kind(Kind::Bool);
    // The output goes with the decoder's input where there is one.
    let decoded = reference.contains_key("decoder_input_ids") && reference.contains_key("logits");
    let mask = if decoded { "decoder_attention_mask" } else { "attention_mask" };
    if let Some(mask) = reference.get(mask).filter(|_| expected.dim() == 3) {
        // Outputs at padding do not count.
        shown = mask.to_kind(Kind::Bool).unsqueeze(-1).expand_as(&expected);
    }
    let (a, b) = (output.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let (a, b) = (a.masked_fill(&shown.logical_not(), 0.), b.masked_fill(&shown.logical_not(), 0.));
    let largest = |x: &Tensor| x.abs().max().double_value(&[]);
    let max_abs_diff = largest(&(&a - &b));
    let max_rel_diff = max_abs_diff / largest(&b).max(f64::MIN_POSITIVE);
    let rows = shown.any_dim(-1, false);
    let same = a.argmax(-1, false).eq_tensor(&b.argmax(-1, false)).logical_and(&rows);
    let count = |x: &Tensor| x.sum(Kind::Int64).int64_value(&[]) as f64;
    let argmax_agreement = count(&same) / count(&rows).max(1.);
    let ok = max_abs_diff <= args.tolerance;
    if args.json {
        let report = json!({
            "max_abs_diff": max_abs_diff,
            "max_rel_diff": max_rel_diff,
            "argmax_agreement": argmax_agreement,
            "ok": ok,
        });
        println!("{report:#}");
    } else {
        println!("{model_type} on {device:?}");
        println!("largest difference    {max_abs_diff:.3e} (tolerance {:.1e})", args.tolerance);
        println!("relative              {max_rel_diff:.3e}");
        println!("argmax the same       {:.2} %", 100. * argmax_agreement);
        println!("{}", if ok { "ok" } else { "NOT the same" });
    }
    Ok(ok)
}

/// The output of the model, and that of Python.
fn compute(model: &AnyModel, reference: &HashMap<String, Tensor>) -> Result<(Tensor, Tensor)> {
    let given = |name: &str| reference.get(name);
    let need = |name: &str| {
        let names: Vec<&str> = reference.keys().map(String::as_str).collect();
        given(name)
            .with_context(|| format!("the reference holds no '{name}', only {}", names.join(", ")))
    };
    // Logits where they are there, since they depend on all else.
    let (logits, name) = match given("logits") {
        Some(_) => (true, "logits"),
        None => (false, "last_hidden_state"),
    };
    let mask = given("attention_mask");
    let output = match model {
        AnyModel::Decoder(model) => {
            let inputs = Inputs::new(need("input_ids")?).attention_mask(mask);
            if logits {
                model.logits(inputs)?
            } else {
                model.hidden_states(inputs)?
            }
        }
        AnyModel::Encoder(model) => {
            let (ids, types) = (need("input_ids")?, given("token_type_ids"));
            match logits {
                true => model.logits(ids, mask, types, false)?,
                false => model.hidden_states(ids, mask, types, false)?,
            }
        }
        AnyModel::Seq2Seq(model) => {
            let ids = need("input_ids")?;
            match logits {
                true => {
                    let (decoder_ids, decoder_mask) =
                        (need("decoder_input_ids")?, given("decoder_attention_mask"));
                    model.logits(ids, mask, decoder_ids, decoder_mask, false)?
                }
                // The encoder's, as transformers calls it there.
                false => model.encode(ids, mask, false)?,
            }
        }
        AnyModel::ViT(model) => {
            anyhow::ensure!(logits, "of this model the reference must hold 'logits'");
            model.logits(&need("pixel_values")?.to_kind(model.kind()), false)?
        }
        AnyModel::Dinov2(model) => {
            let pixels = need("pixel_values")?.to_kind(model.kind());
            if logits {
                model.logits(&pixels, false)?
            } else {
                model.hidden_states(&pixels, false)?
            }
        }
        AnyModel::Clip(model) if reference.contains_key("pixel_values") => {
            let pixels = need("pixel_values")?.to_kind(model.kind());
            match logits {
                // `logits_per_image`, if there are texts as well.
                true => {
                    let texts = model.text_features(need("input_ids")?, mask, false)?;
                    model.logits_per_image(&model.image_features(&pixels, false)?, &texts)?
                }
                false => model.image_hidden_states(&pixels, false)?,
            }
        }
        AnyModel::Clip(model) => {
            anyhow::ensure!(!logits, "without 'pixel_values' CLIP has no logits");
            model.text_hidden_states(need("input_ids")?, mask, false)?
        }
        _ => bail!("verify does not know this model yet"),
    };
    Ok((output, need(name)?.shallow_clone()))
}
