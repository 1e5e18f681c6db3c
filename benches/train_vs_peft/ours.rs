//! Our side: what a child process does.

use std::io::{stdin, BufRead};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use ln_tuning::device::{best_device, memory_info};
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{
    Decoder, DecoderConfig, Encoder, GenerateOptions, Inputs, Load, Model, ModelConfig,
};
use ln_tuning::recompute::Recompute;
use ln_tuning::{AdamW, GraphedStep, LnTuningConfig, LnTuningModel, Optimizer, TaskType};
use tch::nn::VarStore;
use tch::{no_grad, Cuda, Device, Kind, Tensor};

use crate::floor::floor;
use crate::task::{Ready, Task};
use crate::work::{kind, Batch, GGUF, MINILM};

/// A step, from its number to its loss.
type Step = Box<dyn FnMut(i64) -> Result<Tensor>>;

pub fn child(task: &str) -> Result<()> {
    let task: Task = serde_json::from_str(task).with_context(|| format!("not a task: {task}"))?;
    // First of all: libtorch looks for CUDA once.
    let device = if task.device == "cpu" { Device::Cpu } else { best_device() };
    anyhow::ensure!(
        (device == Device::Cpu) == (task.device == "cpu"),
        "{}",
        ln_tuning::device::cuda_status()
    );
    tch::set_num_threads(task.threads);
    let used = || -> Result<u64> {
        let memory = memory_info(device)?;
        Ok(memory.total - memory.free)
    };
    let before = used()?;
    let (mut step, weights) = prepare(&task, device)?;
    let ready = Ready {
        library: format!("ln-tuning {}", env!("CARGO_PKG_VERSION")),
        attention: "scaled_dot_product_attention".to_owned(),
        device_name: None,
        weights,
    };
    println!("{}", serde_json::to_string(&ready)?);
    let synchronize = || {
        if let Device::Cuda(index) = device {
            Cuda::synchronize(index as i64);
        }
    };
    for line in stdin().lock().lines() {
        let line = line?;
        if line == "memory" {
            println!("{}", used()?.saturating_sub(before) as f64 / 1e6);
            continue;
        }
        let number = line.trim().parse()?;
        synchronize();
        let start = Instant::now();
        let value = step(number)?;
        synchronize();
        println!("{} {}", start.elapsed().as_secs_f64() * 1e3, value.double_value(&[]));
    }
    Ok(())
}

/// The step, and the bytes of the weights.
fn prepare(task: &Task, device: Device) -> Result<(Step, u64)> {
    let (kind, batch) = (kind(&task.kind)?, task.batch);
    if task.how == "floor" {
        let mut products = floor(&task.dir, kind, batch.rows * batch.length, device)?;
        let step = move |step| {
            products(batch.rows * batch.length_of(step));
            Ok(Tensor::from(0.))
        };
        return Ok((Box::new(step), 0));
    }
    let load = Load::on(device).kind(kind).frozen(task.base.parse()?);
    if batch.padded {
        let (vs, model) = Encoder::from_pretrained_with(&task.dir, &load)?;
        let weights = bytes_of(&vs);
        // PEFT's table has no row for bert.
        let config = LnTuningConfig::default().task_type(TaskType::SeqCls);
        let config = config.target_modules(["LayerNorm"]);
        let opt = LnTuningModel::new(&vs, config)?.optimizer(AdamW::default().wd(0.01), 1e-4)?;
        let mut training = Classification { _vs: vs, model, opt };
        return Ok((Box::new(move |step| training.step(step, batch, device)), weights));
    }
    let (vs, model) = open(&task.dir, device, kind, &load)?;
    let weights = bytes_of(&vs);
    let tuned = LnTuningModel::new(&vs, LnTuningConfig::default())?;
    if task.how == "generate" {
        let options = GenerateOptions::default().max_new_tokens(64).stop_tokens([]);
        let step = move |step| {
            let (_, _) = (&vs, &tuned);
            let ids = ids(step, batch, model.config().vocab_size()).to_device(device);
            Ok(model.generate(&ids, &options)?.sum(Kind::Double))
        };
        return Ok((Box::new(step), weights));
    }
    let opt = tuned.optimizer(AdamW::default().wd(0.01), 1e-4)?;
    let recompute = task.how == "recompute";
    let graph = (task.how == "graph").then(|| GraphedStep::default().clip_norm(1.)).transpose()?;
    let mut training = Training { _vs: vs, model, opt, recompute, graph };
    Ok((Box::new(move |step| training.step(step, batch, device)), weights))
}

fn bytes_of(vs: &VarStore) -> u64 {
    let bytes = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
    vs.variables().values().map(bytes).sum::<usize>() as u64
}

/// The model of a directory. Without weights there, they are those that benches/peft_train.py makes.
fn open(dir: &Path, device: Device, kind: Kind, load: &Load) -> Result<(VarStore, Decoder)> {
    if dir.join(GGUF).exists() {
        return Ok(Decoder::from_pretrained_with(dir.join(GGUF), load)?);
    }
    if dir.join("model.safetensors").exists() {
        return Ok(Decoder::from_pretrained_with(dir, load)?);
    }
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(dir.join("config.json"))?)?;
    let mut vs = VarStore::new(device);
    vs.set_kind(kind);
    let model = Decoder::new(&vs.root(), &DecoderConfig::from_value(&config)?)?;
    let mut variables: Vec<_> = vs.variables().into_iter().collect();
    variables.sort_by(|a, b| a.0.cmp(&b.0));
    no_grad(|| {
        for (seed, (_, mut variable)) in variables.into_iter().enumerate() {
            tch::manual_seed(seed as i64);
            let _ = match variable.dim() {
                1 => variable.fill_(1.),
                _ => variable.normal_(0., 0.02),
            };
        }
    });
    Ok((vs, model))
}

/// Those of benches/peft_train.py, on the CPU.
fn ids(step: i64, batch: Batch, vocabulary: i64) -> Tensor {
    let length = batch.length_of(step);
    let index = Tensor::arange(batch.rows * length, (Kind::Int64, Device::Cpu)) + step * 7919;
    let ids = (&index * &index * 31 + &index * 17).remainder(vocabulary);
    ids.view([batch.rows, length])
}

/// Whole rows get one of two labels.
struct Classification {
    _vs: VarStore,
    model: Encoder,
    opt: Optimizer,
}

impl Classification {
    fn step(&mut self, step: i64, batch: Batch, device: Device) -> Result<Tensor> {
        let ids = ids(step, batch, MINILM.vocabulary).to_device(device);
        let rows = Tensor::arange(batch.rows, (Kind::Int64, device));
        let places = Tensor::arange(batch.length, (Kind::Int64, device));
        // Those of benches/peft_train.py.
        let lengths: Tensor = batch.length - (&rows * 37).remainder(batch.length / 2);
        let mask = places.unsqueeze(0).lt_tensor(&lengths.unsqueeze(1)).to_kind(Kind::Int64);
        let inputs = Inputs::new(&ids).attention_mask(&mask).train(true);
        let loss = self.model.logits(inputs)?.cross_entropy_for_logits(&rows.remainder(2));
        self.opt.backward_step_clip_norm(&loss, 1.)?;
        Ok(loss.detach())
    }
}

struct Training {
    _vs: VarStore,
    model: Decoder,
    opt: Optimizer,
    recompute: bool,
    graph: Option<GraphedStep>,
}

impl Training {
    fn step(&mut self, step: i64, batch: Batch, device: Device) -> Result<Tensor> {
        let (model, opt) = (&self.model, &mut self.opt);
        let labels = ids(step, batch, model.config().vocab_size());
        let ids = labels.to_device(device);
        let documents = batch.documents.map(|length| {
            let places = Tensor::arange(labels.size()[1], (Kind::Int64, Device::Cpu));
            let documents = places.divide_scalar_mode(length, "floor");
            documents.expand_as(&labels).contiguous().to_device(device)
        });
        let inputs = || Inputs::new(&ids).documents(documents.as_ref()).train(true);
        let cross_entropy = LinearCrossEntropy::default();
        if let Some(graph) = &mut self.graph {
            let stepped = graph.run(opt, &[&ids], |inputs| {
                model.loss(Inputs::new(&inputs[0]).train(true), &inputs[0], &cross_entropy)
            })?;
            // Steps that are not replayed must not pass for those that are.
            if let Some(reason) = graph.without_graph() {
                anyhow::bail!("no CUDA graph: {reason}");
            }
            return Ok(stepped.loss);
        }
        if !self.recompute {
            let loss = model.loss(inputs(), &labels, &cross_entropy)?;
            opt.backward_step_clip_norm(&loss, 1.)?;
            return Ok(loss.detach());
        }
        opt.zero_grad()?;
        let recompute = Recompute::default().preserve_rng_state(false);
        let loss = opt.backward_recompute(&recompute, |tape| {
            model.loss_with(inputs(), &labels, &cross_entropy, tape)
        })?;
        let _ = opt.clip_grad_norm(1.)?;
        opt.step()?;
        Ok(loss)
    }
}
