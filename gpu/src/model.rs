//! One model, and what is computed with it.

use std::path::Path;

use anyhow::{Context, Result};
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{AnyModel, Head, Inputs, Load};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel};
use serde::Deserialize;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

/// `check.json`, which `gpu/make_models.py` writes.
#[derive(Debug, Deserialize)]
struct Task {
    /// A language model with the loss of its next tokens; of others the mean square of the output is taken.
    language: bool,
    /// The base model's hidden states rather than logits.
    hidden: bool,
    /// The modules to tune; none in a model whose norms have no weights.
    target_modules: Vec<String>,
    cases: Vec<String>,
    /// The case of the training steps.
    trained: String,
    steps: usize,
    lr: f64,
    weight_decay: f64,
}

pub struct Checked {
    vs: VarStore,
    model: AnyModel,
    task: Task,
    inputs: Vec<(String, Tensor)>,
    device: Device,
}

impl Checked {
    pub fn open(dir: &Path, device: Device, kind: Kind) -> Result<Self> {
        let text = std::fs::read_to_string(dir.join("check.json"))?;
        let task: Task = serde_json::from_str(&text)?;
        let inputs = Tensor::read_safetensors(dir.join("inputs.safetensors"))?;
        let mut load = Load::on(device).kind(kind);
        if task.language {
            // Some checkpoints are those of a base model.
            load = load.head(Head::LanguageModel);
        }
        let (vs, model) = AnyModel::from_files(ModelFiles::open(dir)?, &load)?;
        Ok(Checked { vs, model, task, inputs, device })
    }

    /// Everything that is compared, in f32 or f64 on the CPU.
    pub fn compute(&self, dry_run: bool) -> Result<Vec<(String, Tensor)>> {
        let mut all = Vec::new();
        for case in &self.task.cases {
            let inputs = self.inputs(case);
            all.push((format!("{case}.output"), self.output(&inputs)?));
            all.extend(self.trained(case, &inputs, dry_run)?);
        }
        for (_, tensor) in &mut all {
            *tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
        }
        Ok(all)
    }

    fn inputs(&self, case: &str) -> Given {
        let given = |name: &str| {
            let key = format!("{case}.{name}");
            let (_, tensor) = self.inputs.iter().find(|(known, _)| *known == key)?;
            Some(tensor.shallow_clone())
        };
        let on_device = |name: &str| given(name).map(|tensor| tensor.to_device(self.device));
        Given {
            ids: on_device("input_ids"),
            mask: on_device("attention_mask"),
            types: on_device("token_type_ids"),
            documents: on_device("documents"),
            images: on_device("pixel_values").map(|images| images.to_kind(self.model.kind())),
            decoder_ids: on_device("decoder_input_ids"),
            decoder_mask: on_device("decoder_attention_mask"),
            shown: on_device("shown"),
            labels: given("labels"),
        }
    }

    /// Logits or hidden states, 0 at padding.
    fn output(&self, given: &Given) -> Result<Tensor> {
        let output = if self.task.hidden {
            self.model.hidden_states(given.inputs())?
        } else {
            self.model.logits(given.inputs())?
        };
        let output = output.f_to_kind(Kind::Float)?;
        Ok(match &given.shown {
            Some(shown) => output.f_mul(shown)?,
            None => output,
        })
    }

    fn loss(&self, given: &Given) -> Result<Tensor> {
        if let (true, AnyModel::Decoder(model)) = (self.task.language, &self.model) {
            let labels = given.labels.as_ref().context("no labels")?;
            return Ok(model.loss(given.inputs(), labels, &LinearCrossEntropy::default())?);
        }
        Ok(self.output(given)?.f_square()?.f_mean(Kind::Float)?)
    }

    /// The loss and the gradients of the norms, and in one of the cases the norms after some steps.
    fn trained(&self, case: &str, given: &Given, dry_run: bool) -> Result<Vec<(String, Tensor)>> {
        if self.task.target_modules.is_empty() {
            return Ok(vec![(format!("{case}.loss"), tch::no_grad(|| self.loss(given))?)]);
        }
        let config = LnTuningConfig::default().target_modules(self.task.target_modules.clone());
        let tuned = LnTuningModel::new(&self.vs, config)?;
        let mut opt = tuned.optimizer(AdamW::default().wd(self.task.weight_decay), self.task.lr)?;
        let loss = self.loss(given)?;
        opt.backward(&loss)?;
        let mut all = vec![(format!("{case}.loss"), loss)];
        for (name, gradient) in opt.gradients()? {
            let gradient = gradient.with_context(|| format!("no gradient of {name}"))?;
            all.push((format!("{case}.grad.{name}"), gradient.copy()));
        }
        if case == self.task.trained {
            opt.step()?;
            for _ in 1..self.task.steps {
                opt.zero_grad()?;
                opt.backward(&self.loss(given)?)?;
                opt.step()?;
            }
            for (key, tensor) in tuned.state_dict("default")? {
                let name = key.replace("base_model.model.", "").replace("ln_tuning_layers.", "");
                all.push((format!("{case}.after.{name}"), tensor.copy()));
            }
        }
        // The base again, bit for bit, for the next case.
        drop(opt);
        let unloaded = tuned.unload();
        if !dry_run {
            unloaded?;
        }
        Ok(all)
    }
}

/// The tensors of one case.
struct Given {
    ids: Option<Tensor>,
    mask: Option<Tensor>,
    types: Option<Tensor>,
    documents: Option<Tensor>,
    images: Option<Tensor>,
    decoder_ids: Option<Tensor>,
    decoder_mask: Option<Tensor>,
    /// 1 where the output counts.
    shown: Option<Tensor>,
    labels: Option<Tensor>,
}

impl Given {
    fn inputs(&self) -> Inputs<'_> {
        Inputs::default()
            .input_ids(&self.ids)
            .attention_mask(&self.mask)
            .token_type_ids(&self.types)
            .documents(&self.documents)
            .pixel_values(&self.images)
            .decoder_ids(&self.decoder_ids)
            .decoder_attention_mask(&self.decoder_mask)
    }
}
