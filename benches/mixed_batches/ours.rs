//! Our side: a decoder with LN adapters.

use anyhow::Result;
use ln_tuning::models::{Decoder, DecoderConfig, GenerateOptions, Inputs, Model, ModelConfig};
use ln_tuning::{LnTuningConfig, LnTuningModel, LoadOptions, SaveOptions};
use serde_json::json;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::clock::now;
use crate::task::{new_tokens, Shape};
use crate::{Mix, Side, Times};

pub struct Ours {
    model: Decoder,
    tuned: LnTuningModel,
    resident: usize,
    shape: Shape,
    _vs: VarStore,
}

impl Ours {
    pub fn new(shape: Shape, kind: Kind) -> Result<Self> {
        let mut config = shape.config();
        config["model_type"] = json!("llama");
        let mut vs = VarStore::new(Device::Cpu);
        vs.set_kind(kind);
        let model = Decoder::new(&vs.root(), &DecoderConfig::from_value(&config)?)?;
        let tuned = LnTuningModel::with_adapter_name(&vs, LnTuningConfig::default(), "a0")?;
        Ok(Ours { model, tuned, resident: 1, shape, _vs: vs })
    }

    /// Loads adapters from a directory; gives the seconds.
    pub fn grow(&mut self, wanted: usize) -> Result<f64> {
        let dir = tempfile::tempdir()?;
        self.tuned
            .save_pretrained_with(dir.path(), &SaveOptions::default().selected_adapters(["a0"]))?;
        let start = now();
        for number in self.resident..wanted {
            let name = format!("a{number}");
            self.tuned.load_adapter(dir.path().join("a0"), &name, &LoadOptions::default())?;
        }
        self.resident = self.resident.max(wanted);
        Ok(now() - start)
    }
}

impl Side for Ours {
    fn time(&mut self, rows: i64, length: i64, mix: Mix) -> Result<Times> {
        let place = (Kind::Int64, Device::Cpu);
        let ids = Tensor::f_randint(self.shape.vocabulary, [rows, length], place)?;
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
        let (start, mut first) = (now(), None);
        let _ = self.model.generate_streaming(inputs, &options, |_| {
            first.get_or_insert_with(now);
            true
        })?;
        let first = first.unwrap_or(start);
        Ok(Times { prefill: first - start, decode: now() - first })
    }
}
