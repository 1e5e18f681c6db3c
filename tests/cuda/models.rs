//! Every model, on every path: what comes out is on the model's device, in the kind and shape that it has on the CPU.

use std::path::Path;

use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{AnyModel, GenerateOptions, Head, Inputs, Load, Model};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::recompute::Recompute;
use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel, Optimizer, Result};
use tch::{no_grad, Cuda, Device, Kind, Tensor};

use crate::checkpoints::{all, checkpoints};
use crate::counting::{self, Gpu};

type Outputs = Vec<(&'static str, Tensor)>;

fn train(loss: Result<Tensor>, optimizer: &mut Option<Optimizer>) -> Result<Tensor> {
    let loss = loss?;
    if let Some(optimizer) = optimizer {
        optimizer.zero_grad()?;
        optimizer.backward(&loss)?;
        let _ = optimizer.clip_grad_norm(1.)?;
        optimizer.step()?;
    }
    Ok(loss.detach())
}

fn outputs(dir: &Path, device: Device, kind: Kind) -> Result<Outputs> {
    let files = ModelFiles::open(dir)?;
    let load = Load::on(device).kind(kind);
    // One case is the directory of a base model.
    let decoder = dir.parent().is_some_and(|family| family.ends_with("decoders"));
    let load = if decoder { load.head(Head::LanguageModel) } else { load };
    let (vs, model) = AnyModel::from_files(files, &load)?;
    // The norms of OLMo have no weights.
    let tuned = match model.model_type() {
        "olmo" => None,
        _ => Some(LnTuningModel::new(&vs, LnTuningConfig::default())?),
    };
    let optimizer = tuned.as_ref().map(|tuned| tuned.optimizer(AdamW::default(), 1e-3));
    let mut optimizer = optimizer.transpose()?;
    let opt = &mut optimizer;

    let labels = Tensor::arange(18, (Kind::Int64, Device::Cpu)).view([2, 9]).remainder(20) + 3;
    let ids = &labels.to_device(device);
    let mask = Tensor::from_slice2(&[[0i64, 0, 1, 1, 1, 1, 1, 1, 1], [1; 9]]).to_device(device);
    let documents =
        Tensor::from_slice2(&[[0i64, 0, 0, 1, 1, 1, 2, 2, -1], [0; 9]]).to_device(device);
    let masked = || Inputs::new(ids).attention_mask(&mask);
    let entropy = LinearCrossEntropy::default();
    let greedy = || GenerateOptions::default().max_new_tokens(3).stop_tokens([]);
    let sum = |logits: Result<Tensor>| Ok(logits?.f_sum(Kind::Float)?);
    let config = model.config();
    let vision = config.get("vision_config").unwrap_or(&config);
    let (size, channels) = (vision["image_size"].as_i64(), vision["num_channels"].as_i64());
    let size = size.unwrap_or(1);
    let images = &Tensor::zeros([2, channels.unwrap_or(3), size, size], (kind, device));

    let mut found = match &model {
        AnyModel::Decoder(model) => vec![
            ("logits", model.logits(ids)?),
            ("logits with padding", model.logits(masked())?),
            ("loss", train(model.loss(Inputs::new(ids).train(true), &labels, &entropy), opt)?),
            ("loss of labels on the device", train(model.loss(ids, ids, &entropy), opt)?),
            ("loss with padding", train(model.loss(masked().train(true), &labels, &entropy), opt)?),
            ("loss of documents", {
                let inputs = Inputs::new(ids).documents(&documents);
                train(model.loss(inputs.train(true), &labels, &entropy), opt)?
            }),
            (
                "recomputed loss",
                match opt {
                    None => model.loss(ids, &labels, &entropy)?.detach(),
                    Some(optimizer) => {
                        optimizer.zero_grad()?;
                        let loss = optimizer.backward_recompute(&Recompute::default(), |tape| {
                            model.loss_with(ids, &labels, &entropy, tape)
                        })?;
                        optimizer.step()?;
                        loss
                    }
                },
            ),
            ("text", no_grad(|| model.generate(ids, &greedy()))?),
            ("text after padding", no_grad(|| model.generate(masked(), &greedy()))?),
            ("sampled text", {
                let sampled = greedy().temperature(0.7).top_k(5).top_p(0.9);
                no_grad(|| model.generate(ids, &sampled))?
            }),
        ],
        AnyModel::Encoder(encoder) => {
            let hidden = encoder.hidden_states(masked())?;
            let mut found = vec![
                ("hidden states", encoder.hidden_states(ids)?),
                ("loss", train(sum(encoder.hidden_states(masked().train(true))), opt)?),
                ("hidden states with padding", hidden),
            ];
            if config["architectures"][0].as_str().is_some_and(|name| name.contains("For")) {
                found.push(("logits", encoder.logits(masked())?));
            }
            found
        }
        AnyModel::Seq2Seq(model) => vec![
            ("encoded", model.encode(masked())?),
            ("logits", model.logits(Inputs::new(ids).decoder_ids(ids))?),
            ("loss", {
                let inputs = masked().decoder_ids(ids).decoder_attention_mask(&mask);
                train(sum(model.logits(inputs.train(true))), opt)?
            }),
            ("text", no_grad(|| model.generate(masked(), &greedy()))?),
        ],
        AnyModel::ViT(model) => {
            let logits = model.logits(Inputs::images(images).train(true));
            vec![("logits", model.logits(images)?), ("loss", train(sum(logits), opt)?)]
        }
        AnyModel::Dinov2(model) => {
            let hidden = model.hidden_states(Inputs::images(images).train(true));
            vec![
                ("hidden states", model.hidden_states(images)?),
                ("loss", train(sum(hidden), opt)?),
            ]
        }
        AnyModel::Clip(model) => {
            let both = masked().pixel_values(images);
            vec![
                ("features of texts", model.text_features(masked())?),
                ("features of images", model.image_features(images)?),
                ("logits", model.logits(both)?),
                ("loss", train(sum(model.logits(both.train(true))), opt)?),
            ]
        }
        _ => panic!("{}: a model without a path here", dir.display()),
    };
    if let Some(optimizer) = opt {
        optimizer.zero_grad()?;
        let loss = optimizer.backward_recompute(&Recompute::default(), |tape| {
            let output = match &model {
                AnyModel::Decoder(_) | AnyModel::Encoder(_) => {
                    model.hidden_states_with(masked().train(true), tape)?
                }
                AnyModel::Seq2Seq(model) => model.logits_with(masked().decoder_ids(ids), tape)?,
                AnyModel::Clip(model) => model.logits_with(masked().pixel_values(images), tape)?,
                _ => model.hidden_states_with(Inputs::images(images).train(true), tape)?,
            };
            Ok(output.f_sum(Kind::Float)?)
        })?;
        optimizer.step()?;
        found.push(("recomputed sum", loss));
    }
    Ok(found)
}

/// Runs every model there. The kinds and shapes of the CPU are the same for all devices: one test compares with them.
fn run_all(device: Device, kind: Kind, compare: bool) {
    for dir in all() {
        let outputs = |device| {
            let failed = |error| panic!("{} on {device:?} in {kind:?}: {error}", dir.display());
            outputs(&dir, device, kind).unwrap_or_else(failed)
        };
        let found = outputs(device);
        for (name, tensor) in &found {
            assert_eq!(tensor.device(), device, "{}: {name}", dir.display());
        }
        let described = |outputs: &Outputs| -> Vec<(&str, Kind, Vec<i64>)> {
            outputs.iter().map(|(name, tensor)| (*name, tensor.kind(), tensor.size())).collect()
        };
        if compare {
            assert_eq!(described(&found), described(&outputs(Device::Cpu)), "{}", dir.display());
        }
    }
}

/// cuDNN's convolutions are not there; nothing else of this crate asks for it.
fn without_cudnn() {
    ln_tuning::device::best_device();
    Cuda::set_user_enabled_cudnn(false);
}

#[test]
fn every_model_runs_on_both_devices_of_two_as_sm_80() {
    checkpoints();
    Gpu { sm: 80, devices: 2, ..Gpu::default() }.run(|| {
        without_cudnn();
        run_all(Device::Cuda(1), Kind::Float, false);
        counting::only_device(1);
        run_all(Device::Cuda(0), Kind::BFloat16, false);
        run_all(Device::Cuda(0), Kind::Half, false);
    });
}

#[test]
fn every_model_runs_on_both_devices_of_two_as_sm_89() {
    checkpoints();
    Gpu { sm: 89, devices: 2, ..Gpu::default() }.run(|| {
        without_cudnn();
        run_all(Device::Cuda(1), Kind::BFloat16, false);
        run_all(Device::Cuda(1), Kind::Half, false);
        counting::only_device(1);
        run_all(Device::Cuda(0), Kind::Float, false);
    });
}

#[test]
fn every_model_runs_on_both_devices_of_two_as_sm_90() {
    checkpoints();
    Gpu { sm: 90, devices: 2, ..Gpu::default() }.run(|| {
        without_cudnn();
        run_all(Device::Cuda(1), Kind::BFloat16, true);
        run_all(Device::Cuda(1), Kind::Float, false);
        counting::only_device(1);
        run_all(Device::Cuda(0), Kind::Half, false);
    });
}
