//! Our side: a decoder with LN adapters.

use std::time::Instant;

use anyhow::Result;
use ln_tuning::models::{Decoder, DecoderConfig, GenerateOptions, Inputs, Model, ModelConfig};
use ln_tuning::{LnTuningConfig, LnTuningModel};
use serde_json::json;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::{Mix, Times, NEW, SHAPE};

pub struct Ours {
    model: Decoder,
    tuned: LnTuningModel,
    resident: usize,
    _vs: VarStore,
}

impl Ours {
    pub fn new() -> Result<Self> {
        let [hidden, inner, layers, heads, kv_heads, vocabulary] = SHAPE;
        let config = DecoderConfig::from_value(&json!({
            "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
            "max_position_embeddings": 2048,
        }))?;
        let vs = VarStore::new(Device::Cpu);
        let model = Decoder::new(&vs.root(), &config)?;
        let tuned = LnTuningModel::with_adapter_name(&vs, LnTuningConfig::default(), "a0")?;
        Ok(Ours { model, tuned, resident: 1, _vs: vs })
    }

    /// The weights of an adapter.
    pub fn weights(&self) -> i64 {
        SHAPE[0] * (2 * SHAPE[2] + 1)
    }

    pub fn grow(&mut self, wanted: usize) -> Result<()> {
        for number in self.resident..wanted {
            self.tuned.add_adapter(&format!("a{number}"), LnTuningConfig::default())?;
        }
        self.resident = self.resident.max(wanted);
        Ok(())
    }

    pub fn time(&mut self, rows: i64, length: i64, mix: Mix) -> Result<Times> {
        let place = (Kind::Int64, Device::Cpu);
        let ids = Tensor::f_randint(SHAPE[5], [rows, length], place)?;
        let names: Vec<String> = match mix {
            Mix::One => Vec::new(),
            Mix::Each(adapters) => {
                (0..rows).map(|row| format!("a{}", row % adapters as i64)).collect()
            }
        };
        let mut inputs = Inputs::new(&ids);
        if mix != Mix::One {
            inputs = inputs.adapter_names(&names);
        }
        let options = GenerateOptions::default().max_new_tokens(NEW).stop_tokens([]);
        let (start, mut first) = (Instant::now(), None);
        let _ = self.model.generate_streaming(inputs, &options, |_| {
            first.get_or_insert_with(|| start.elapsed().as_secs_f64());
            true
        })?;
        let prefill = first.unwrap_or_default();
        Ok(Times { prefill, decode: start.elapsed().as_secs_f64() - prefill })
    }
}
