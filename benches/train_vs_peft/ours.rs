//! Our side: what a child process does.

use std::collections::HashMap;
use std::io::{stdin, BufRead};
use std::time::Instant;

use anyhow::{Context, Result};
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Decoder, GenerateOptions, Model};
use ln_tuning::recompute::Recompute;
use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel, Optimizer};
use tch::nn::VarStore;
use tch::{no_grad, Cuda, Device, Kind, Tensor};

use crate::work::{kind, Shape};

/// Arguments as those of benches/peft_train.py, answers as its.
pub fn child(arguments: &[String]) -> Result<()> {
    let [dir, kind_name, batch, length, device, threads, how] = arguments else {
        anyhow::bail!("seven arguments, found {arguments:?}");
    };
    tch::set_num_threads(threads.parse()?);
    let device = match device.as_str() {
        "cpu" => Device::Cpu,
        _ => ln_tuning::device::best_device(),
    };
    let (kind, batch, length) = (kind(kind_name)?, batch.parse()?, length.parse()?);
    let mut run: Box<dyn FnMut(i64) -> Result<Tensor>> = match how.as_str() {
        "floor" => floor(dir, kind, batch * length, device)?,
        "generate" => {
            let (vs, model) = Decoder::from_pretrained(dir, device, kind)?;
            let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
            let options = GenerateOptions::default().max_new_tokens(64).stop_tokens([]);
            Box::new(move |step| {
                let (_, _) = (&vs, &tuned);
                let ids = ids(step, batch, length, model.config().vocab_size(), device);
                Ok(model.generate(&ids, &options)?.sum(Kind::Double))
            })
        }
        _ => {
            let (vs, model) = Decoder::from_pretrained(dir, device, kind)?;
            let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
            let opt = tuned.optimizer(AdamW::default().wd(0.01), 1e-4)?;
            let recompute = how == "recompute";
            let mut training = Training { _vs: vs, model, opt, recompute };
            Box::new(move |step| training.step(step, batch, length, device))
        }
    };
    println!("ready");
    for line in stdin().lock().lines() {
        let step = line?.trim().parse()?;
        let start = Instant::now();
        let value = run(step)?;
        if let Device::Cuda(index) = device {
            Cuda::synchronize(index as i64);
        }
        println!("{} {}", start.elapsed().as_secs_f64() * 1e3, value.double_value(&[]));
    }
    Ok(())
}

/// Those of benches/peft_train.py.
fn ids(step: i64, batch: i64, length: i64, vocabulary: i64, device: Device) -> Tensor {
    let index = Tensor::arange(batch * length, (Kind::Int64, Device::Cpu)) + step * 7919;
    let ids = (&index * &index * 31 + &index * 17).remainder(vocabulary);
    ids.view([batch, length]).to_device(device)
}

struct Training {
    _vs: VarStore,
    model: Decoder,
    opt: Optimizer,
    recompute: bool,
}

impl Training {
    fn step(&mut self, step: i64, batch: i64, length: i64, device: Device) -> Result<Tensor> {
        let (model, opt) = (&self.model, &mut self.opt);
        let labels = ids(step, batch, length, model.config().vocab_size(), Device::Cpu);
        let ids = labels.to_device(device);
        let cross_entropy = LinearCrossEntropy::default();
        if !self.recompute {
            let loss = model.loss(&ids, &labels, &cross_entropy)?;
            opt.backward_step_clip_norm(&loss, 1.)?;
            return Ok(loss.detach());
        }
        opt.zero_grad()?;
        let recompute = Recompute::default().preserve_rng_state(false);
        let loss = opt.backward_with(|inputs| {
            recompute.gradients(inputs, |tape| model.loss_with(&ids, &labels, &cross_entropy, tape))
        })?;
        let _ = opt.clip_grad_norm(1.)?;
        opt.step()?;
        Ok(loss)
    }
}

/// The call of libtorch that computes a product.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Matrices(Kind),
    /// As a convolution of one pixel in f32, which goes to another library.
    Pixels,
}

/// The product with a weight, forwards and backwards to its input, of so many rows.
fn product(weight: &Tensor, tokens: i64, way: Way) {
    let (rows, columns) = weight.size2().unwrap_or_default();
    let options = (weight.kind(), weight.device());
    let (x, y) = (Tensor::ones([tokens, columns], options), Tensor::ones([tokens, rows], options));
    if way != Way::Pixels {
        let _ = (x.linear(weight, None::<Tensor>), y.matmul(weight));
        return;
    }
    let pixels =
        |x: Tensor, size: i64| x.view([1, tokens, 1, size]).permute([0_i64, 3, 1, 2].as_slice());
    let weight = weight.view([rows, columns, 1, 1]);
    let _ = pixels(x, columns).conv2d(&weight, None::<Tensor>, 1, 0, 1, 1);
    let _ = pixels(y, rows).conv_transpose2d(&weight, None::<Tensor>, 1, 0, 0, 1, 1);
}

/// The matrix products of a step, forwards and backwards to their inputs, and nothing else: each in the way in which
/// this processor is fastest.
fn floor(
    dir: &str,
    kind: Kind,
    tokens: i64,
    device: Device,
) -> Result<Box<dyn FnMut(i64) -> Result<Tensor>>> {
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{dir}/config.json"))?)?;
    let number = |key: &str| config[key].as_i64().with_context(|| format!("no {key}"));
    let shape = Shape {
        hidden: number("hidden_size")?,
        inner: number("intermediate_size")?,
        layers: number("num_hidden_layers")?,
        heads: number("num_attention_heads")?,
        kv_heads: number("num_key_value_heads")?,
        vocabulary: number("vocab_size")?,
    };
    let weight = |size: (i64, i64), way: Way| {
        let kind = if let Way::Matrices(kind) = way { kind } else { Kind::Float };
        Tensor::ones([size.0, size.1], (kind, device))
    };
    let seconds = |size: (i64, i64), way: Way| {
        let weight = weight(size, way);
        let trial = |_| {
            let start = Instant::now();
            product(&weight, tokens, way);
            if let Device::Cuda(index) = device {
                Cuda::synchronize(index as i64);
            }
            start.elapsed().as_secs_f64()
        };
        (0..4).map(trial).fold(f64::INFINITY, f64::min)
    };
    let mut ways = vec![Way::Matrices(kind)];
    if device == Device::Cpu {
        ways.extend([Way::Matrices(Kind::Float), Way::Pixels]);
    }
    let sizes = shape.matrices();
    let mut fastest: HashMap<(i64, i64), Way> = HashMap::new();
    for size in &sizes {
        fastest.entry(*size).or_insert_with(|| {
            let timed = ways.iter().map(|way| (no_grad(|| seconds(*size, *way)), *way));
            timed.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(ways[0], |(_, way)| way)
        });
    }
    let all = sizes.iter().map(|size| (weight(*size, fastest[size]), fastest[size]));
    let all: Vec<(Tensor, Way)> = all.collect();
    Ok(Box::new(move |_| {
        no_grad(|| all.iter().for_each(|(weight, way)| product(weight, tokens, *way)));
        Ok(Tensor::from(0.))
    }))
}
