//! `--key-mapping` of the commands that read an adapter.

use std::path::Path;

use ln_tuning::models::{Decoder, DecoderConfig, Model, ModelConfig};
use ln_tuning::{pretrained, LnTuningConfig, LnTuningModel};
use tch::nn::VarStore;
use tch::{no_grad, Device, Tensor};

use crate::program::{output, printed, refusal, text, texts};

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 2, "architectures": ["LlamaForCausalLM"]}"#;

/// The keys of an adapter as `torch.compile` leaves them.
fn wrap(adapter: &Path) {
    let path = adapter.join("adapter_model.safetensors");
    let tensors = Tensor::read_safetensors(&path).unwrap();
    let wrapped = |key: &str| key.replace("base_model.model.", "base_model.model._orig_mod.");
    let tensors: Vec<_> = tensors.into_iter().map(|(key, t)| (wrapped(&key), t)).collect();
    Tensor::write_safetensors(&tensors, path).unwrap();
}

#[test]
fn adapters_with_other_keys_are_merged_inspected_and_verified_with_the_rule_of_the_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let vs = VarStore::new(Device::Cpu);
    let model = Decoder::new(&vs.root(), &DecoderConfig::from_json(CONFIG).unwrap()).unwrap();
    pretrained::save(&vs, path("base"), CONFIG).unwrap();
    let tuned =
        LnTuningModel::new(&vs, LnTuningConfig::default().target_modules(["norm"])).unwrap();
    let norm = &vs.variables()["model.norm.weight"];
    let ids = Tensor::from_slice2(&[[1_i64, 2, 3]]);
    let logits = no_grad(|| {
        let _ = norm.shallow_clone().fill_(2.);
        model.logits(&ids).unwrap()
    });
    tuned.save_pretrained(path("adapter")).unwrap();
    Tensor::write_safetensors(&[("input_ids", &ids), ("logits", &logits)], path("reference"))
        .unwrap();
    let (base, adapter) = (path("base"), path("adapter"));
    let (base, adapter, reference) = (text(&base), text(&adapter), path("reference"));
    let merge = |out: &str, more: &[&str]| {
        let out = path(out);
        let arguments = ["merge", "--base", base, "--adapter", adapter, "--out", text(&out)];
        [&arguments[..], more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let strs =
        |arguments: &[String]| printed(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    strs(&merge("plain", &[]));

    wrap(Path::new(adapter));
    let refused = merge("out", &[]);
    let refused = refusal(&refused.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(refused.contains("'base_model.model._orig_mod.model.norm"), "{refused}");
    let rule = refused.split("--key-mapping '").nth(1).unwrap().split('\'').next().unwrap();
    let more = ["--key-mapping", rule];
    strs(&merge("out", &more));
    let weights = |out: &str| std::fs::read(path(out).join("model.safetensors")).unwrap();
    assert!(weights("out") == weights("plain"));
    let inspect = ["inspect", adapter, "--base", base, "--key-mapping", rule];
    assert!(printed(&inspect).contains("base_model.model.model.norm.ln_tuning_layers.weight"));
    let verify = ["verify", "--model", base, "--reference", text(&reference)];
    printed(&[&verify[..], &["--adapter", adapter], &more].concat());

    // Rules that are none, and rules for nothing.
    let bad = |more: &[&str]| output(&[&verify[..], more].concat());
    for (more, part) in [
        (&["--adapter", adapter, "--key-mapping", "(=a"][..], "key_mapping"),
        (&["--key-mapping", rule], "--adapter"),
        (&["--adapter", adapter, "--key-mapping", "norm"], "expected a pattern"),
    ] {
        let answer = bad(more);
        let words = texts(&answer).1;
        assert!(answer.status.code() == Some(2) && words.contains(part), "{words}");
    }
}
