//! Adapter directories, and their configurations alone.

use std::fs;
use std::path::Path;

use anyhow::{ensure, Result};
use fastrand::Rng;
use ln_tuning::{LnTuningConfig, LnTuningModel, Norms, SavedAdapter, Selection, VariableInfo};
use tch::nn::{self, Init, VarStore};
use tch::{Device, Kind, Tensor};

use super::{Seeds, Target};
use crate::damage;

/// Adapters for a small model.
pub struct Adapter(Seeds);

/// The same, their `adapter_config.json` only, as JSON and as YAML.
pub struct Config(Adapter);

/// Two blocks with two norms each, a last norm and a head.
fn base() -> VarStore {
    let vs = VarStore::new(Device::Cpu);
    for layer in 0..2 {
        for norm in ["norm1", "norm2"] {
            nn::layer_norm(vs.root() / "layers" / layer / norm, vec![4], Default::default());
        }
    }
    nn::layer_norm(vs.root() / "norm", vec![4], Default::default());
    let _ = (vs.root() / "head").var("weight", &[3, 4], Init::Const(0.5));
    vs
}

impl Adapter {
    pub fn new() -> Result<Self> {
        let mut seeds = Seeds::new()?;
        let config = LnTuningConfig::default;
        for (name, config) in [
            ("default", config()),
            (
                "list",
                config().target_modules(["norm1", "norm"]).exclude_modules(["layers.0.norm1"]),
            ),
            (
                "pattern",
                config().target_pattern(r"layers\.\d+\.norm[12]").modules_to_save(["head"]),
            ),
        ] {
            LnTuningModel::new(&base(), config)?.save_pretrained(seeds.add(name))?;
        }
        Ok(Adapter(seeds))
    }
}

impl Target for Adapter {
    fn make(&self, dir: &Path, rng: &mut Rng) -> Result<()> {
        self.0.copy(dir, rng)?;
        damage::directory(dir, rng)
    }

    fn run(&self, dir: &Path) -> Result<()> {
        SavedAdapter::open(dir)?;
        let vs = base();
        let before: Vec<(String, Tensor)> =
            vs.variables().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect();
        let opened = LnTuningModel::from_pretrained(&vs, dir);
        if opened.is_err() {
            // The comparison is no answer: a panic is what counts as a finding.
            let now = vs.variables();
            assert!(
                before.iter().all(|(name, was)| now[name].equal(was)),
                "a refusal changed a variable"
            );
        }
        opened?;
        Ok(())
    }
}

impl Config {
    pub fn new() -> Result<Self> {
        Ok(Config(Adapter::new()?))
    }
}

impl Target for Config {
    fn make(&self, dir: &Path, rng: &mut Rng) -> Result<()> {
        self.0 .0.copy(dir, rng)?;
        fs::remove_file(dir.join("adapter_model.safetensors"))?;
        let json = dir.join("adapter_config.json");
        let yaml = LnTuningConfig::from_file(&json)?.to_yaml();
        let path = if rng.bool() { json } else { dir.join("adapter_config.yaml") };
        if path.extension().is_some_and(|ending| ending == "yaml") {
            fs::write(&path, yaml)?;
        }
        for _ in 0..=rng.usize(..3) {
            damage::file(&path, rng)?;
        }
        Ok(())
    }

    fn run(&self, dir: &Path) -> Result<()> {
        let yaml = dir.join("adapter_config.yaml");
        let config = if yaml.exists() {
            LnTuningConfig::from_yaml(&fs::read_to_string(yaml)?)?
        } else {
            LnTuningConfig::from_file(dir.join("adapter_config.json"))?
        };
        let variable = |(name, tensor): (String, Tensor)| VariableInfo {
            name,
            shape: tensor.size(),
            kind: Kind::Float,
            is_parameter: true,
        };
        let variables: Vec<VariableInfo> = base().variables().into_iter().map(variable).collect();
        let selection = Selection::new(&variables, &config, Some("llama"), Norms::Peft)?;
        let exported = selection.export_config(&config);
        ensure!(
            LnTuningConfig::from_json(&exported.to_json())? == exported,
            "another configuration"
        );
        Ok(())
    }
}
