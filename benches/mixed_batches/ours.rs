//! Our side: a decoder with LN adapters.

use anyhow::Result;
use ln_tuning::device::without_fused_functions;
use ln_tuning::models::{Decoder, DecoderConfig, GenerateOptions, Inputs, Model, ModelConfig};
use ln_tuning::{LnTuningConfig, LnTuningModel, LoadOptions, SaveOptions};
use serde_json::json;
use tch::nn::VarStore;
use tch::{no_grad, Cuda, Device, Kind, Tensor};

use crate::clock::now;
use crate::task::{new_tokens, Shape};
use crate::{Mix, Side, Times};

pub struct Ours {
    model: Decoder,
    tuned: LnTuningModel,
    resident: usize,
    shape: Shape,
    vs: VarStore,
}

impl Ours {
    pub fn new(shape: Shape, kind: Kind, device: Device) -> Result<Self> {
        let mut config = shape.config();
        config["model_type"] = json!("llama");
        let mut vs = VarStore::new(device);
        vs.set_kind(kind);
        let model = Decoder::new(&vs.root(), &DecoderConfig::from_value(&config)?)?;
        if device.is_cuda() {
            // As transformers makes them: large ones would overflow in 28 layers.
            let matrices = vs.variables().into_values().filter(|variable| variable.dim() > 1);
            no_grad(|| matrices.for_each(|mut matrix| drop(matrix.normal_(0., 0.02))));
        }
        let tuned = LnTuningModel::with_adapter_name(&vs, LnTuningConfig::default(), "a0")?;
        Ok(Ours { model, tuned, resident: 1, shape, vs })
    }

    /// Loads adapters from a directory; gives the seconds.
    pub fn grow(&mut self, wanted: usize) -> Result<f64> {
        let dir = tempfile::tempdir()?;
        self.tuned
            .save_pretrained_with(dir.path(), &SaveOptions::default().selected_adapters(["a0"]))?;
        self.wait();
        let start = now();
        for number in self.resident..wanted {
            let name = format!("a{number}");
            self.tuned.load_adapter(dir.path().join("a0"), &name, &LoadOptions::default())?;
        }
        self.wait();
        self.resident = self.resident.max(wanted);
        Ok(now() - start)
    }

    /// Runs rows of each adapter, so that all stand in the buffer that mixed batches take theirs from.
    pub fn name_each(&self) -> Result<()> {
        let names: Vec<String> = (0..self.resident).map(|number| format!("a{number}")).collect();
        for names in names.chunks(64) {
            let place = (Kind::Int64, self.vs.device());
            let ids = Tensor::f_zeros([names.len() as i64, 1], place)?;
            let names = names.to_vec();
            let _ = no_grad(|| self.model.logits(Inputs::new(&ids).adapter_names(&names)))?;
        }
        Ok(())
    }

    fn wait(&self) {
        if let Device::Cuda(index) = self.vs.device() {
            Cuda::synchronize(index as i64);
        }
    }

    fn timed(&self, rows: i64, length: i64, mix: Mix) -> Result<Times> {
        let place = (Kind::Int64, Device::Cpu);
        let ids = Tensor::f_randint(self.shape.vocabulary, [rows, length], place)?;
        let ids = ids.f_to_device(self.vs.device())?;
        let names: Vec<String> = match mix {
            Mix::Base | Mix::One => Vec::new(),
            Mix::Each(adapters) => {
                (0..rows).map(|row| format!("a{}", row % adapters as i64)).collect()
            }
        };
        let mut inputs = Inputs::new(&ids);
        if !names.is_empty() {
            inputs = inputs.adapter_names(&names);
        }
        let options = GenerateOptions::default().max_new_tokens(new_tokens(rows)).stop_tokens([]);
        self.wait();
        let (start, mut first) = (now(), None);
        // The tokens are on the host when it is called.
        let _ = self.model.generate_streaming(inputs, &options, |_| {
            first.get_or_insert_with(now);
            true
        })?;
        self.wait();
        let first = first.unwrap_or(start);
        Ok(Times { prefill: first - start, decode: now() - first })
    }
}

impl Side for Ours {
    fn time(&mut self, rows: i64, length: i64, mix: Mix) -> Result<Times> {
        self.timed(rows, length, mix)
    }
}

/// The operations of a pass on CUDA.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Way {
    /// libtorch's own.
    Operators,
    /// Those of the feature `kernels`.
    Fused,
}

impl Way {
    pub fn name(self) -> &'static str {
        if self == Way::Fused {
            "ours, fused"
        } else {
            "ours"
        }
    }
}

/// Our side, computed in this way.
pub struct Through<'a>(pub &'a Ours, pub Way);

impl Side for Through<'_> {
    fn time(&mut self, rows: i64, length: i64, mix: Mix) -> Result<Times> {
        let timed = || self.0.timed(rows, length, mix);
        if self.1 == Way::Fused {
            timed()
        } else {
            without_fused_functions(timed)
        }
    }
}
