//! A base whose blocks come from disk when they are needed computes what one in memory does, and holds two of them.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::nets;
use ln_tuning::gguf::BlockType;
use ln_tuning::loss::{LinearCrossEntropy, Reduction};
use ln_tuning::models::{
    Decoder, DecoderConfig, Encoder, GenerateOptions, Inputs, Load, Model, ModelConfig,
    ViTForImageClassification,
};
use ln_tuning::pretrained::{Frozen, ModelFiles, Place};
use ln_tuning::recompute::Recompute;
use ln_tuning::{pretrained, AdamW, ErrorKind, LnTuningConfig, LnTuningModel};
use serde_json::{json, Value};
use tch::{nn::VarStore, no_grad, Device, Kind, Tensor};

const STREAMED: &str = "streamed";

/// A directory with a model of this configuration.
fn saved<M: Model>(config: &Value) -> tempfile::TempDir {
    let vs = VarStore::new(Device::Cpu);
    M::new(&vs.root(), &M::Config::from_value(config).unwrap()).unwrap();
    nets::fill(&vs, 0.1);
    let dir = tempfile::tempdir().unwrap();
    pretrained::save(&vs, dir.path(), &config.to_string()).unwrap();
    dir
}

fn loaded<M: Model>(dir: &Path, base: &str) -> (VarStore, M) {
    tch::set_num_threads(1);
    let load = Load::on(Device::Cpu).frozen(base.parse().unwrap());
    M::from_pretrained_with(dir, &load).unwrap()
}

fn decoder(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 60, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "n_embd": 64, "n_layer": 4, "n_head": 4,
        "n_positions": 64, "tie_word_embeddings": model_type == "gpt2", "sliding_window": 5,
        "architectures": [if model_type == "gpt2" { "GPT2LMHeadModel" } else { "ForCausalLM" }],
        "query_pre_attn_scalar": 16, "pad_token_id": 0,
    })
}

fn batches() -> Vec<Tensor> {
    let ids =
        |at: i64| (Tensor::arange(14, (Kind::Int64, Device::Cpu)) * 7 + at * 5 + 1).remainder(60);
    (0..3).map(|at| ids(at).view([2, 7])).collect()
}

/// Losses and adapters of some steps, as bits, and tokens.
fn trained(model: &Decoder, vs: &VarStore, steps: usize) -> String {
    let tuned = LnTuningModel::new(vs, LnTuningConfig::default()).unwrap();
    let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    let ids = batches();
    let pairs: Vec<(Inputs, &Tensor)> = ids.iter().map(|ids| (Inputs::new(ids), ids)).collect();
    let loss = LinearCrossEntropy::default().reduction(Reduction::SumOver(36));
    let mut all = String::new();
    for _ in 0..steps {
        opt.zero_grad().unwrap();
        let losses = opt.backward_recompute_many(&Recompute::default(), |tape| {
            model.losses_with(&pairs, &loss, tape)
        });
        losses.unwrap().iter().for_each(|loss| all += &format!("{:?}", nets::bits(loss)));
        opt.step().unwrap();
        let options = GenerateOptions::default().max_new_tokens(5);
        all += &format!("{:?}", nets::bits(&model.generate(&ids[0], &options).unwrap()));
    }
    all + &format!("{:?}", nets::named_bits(&tuned.state_dict("default").unwrap()))
}

#[test]
fn a_streamed_decoder_trains_and_writes_as_one_in_memory_bit_for_bit() {
    for model_type in ["llama", "gpt2", "gemma2", "phi3"] {
        let dir = saved::<Decoder>(&decoder(model_type));
        let (vs, model) = loaded::<Decoder>(dir.path(), "device");
        assert!(!model.is_streamed());
        let expected = trained(&model, &vs, 2);
        let (vs, model) = loaded::<Decoder>(dir.path(), STREAMED);
        assert!(model.is_streamed());
        assert!(trained(&model, &vs, 2) == expected, "{model_type}");
        let (vs, model) = loaded::<Decoder>(dir.path(), "streamed, resident 0.5");
        assert!(trained(&model, &vs, 2) == expected, "{model_type}");
    }
}

/// llama.cpp has the rows of queries and keys in another order: they are brought to the model's when they are needed.
#[test]
fn queries_and_keys_of_a_gguf_file_come_from_the_file_as_all_blocks_do() {
    let dir = saved::<Decoder>(&decoder("llama"));
    let files = ModelFiles::open(dir.path()).unwrap();
    let path = dir.path().join("blocks.gguf");
    pretrained::to_gguf(&files, BlockType::Q8_0).unwrap().write(&path).unwrap();
    let (vs, model) = loaded::<Decoder>(&path, "gguf, device");
    let expected = trained(&model, &vs, 2);
    let (vs, model) = loaded::<Decoder>(&path, "gguf, streamed");
    assert!(trained(&model, &vs, 2) == expected);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let of_file = |tensor: &Tensor| {
        let place = tensor.data_ptr() as usize;
        let mut maps = maps.lines().filter(|line| line.ends_with("blocks.gguf"));
        maps.any(|line| {
            let range = line.split(' ').next().unwrap().split('-');
            let range: Vec<_> = range.map(|end| usize::from_str_radix(end, 16).unwrap()).collect();
            (range[0]..range[1]).contains(&place)
        })
    };
    let variables = vs.variables();
    let mut linear = variables.iter().filter(|(name, _)| name.contains("_proj"));
    assert!(linear.all(|(name, tensor)| of_file(tensor) || panic!("'{name}' is a copy")));
    // Saved, it has the model's order again.
    let values = tempfile::tempdir().unwrap();
    let config = decoder("llama").to_string();
    pretrained::save(&vs, values.path(), &config).unwrap();
    let [found, expected] =
        [values.path(), &path].map(|path| loaded::<Decoder>(path, "mapped").0.variables());
    for name in variables.keys().filter(|name| name.contains("_proj")) {
        assert_eq!(found[name], expected[name], "{name}");
    }
}

#[test]
fn other_models_stream_too() {
    let base = json!({
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
        "max_position_embeddings": 64, "type_vocab_size": 2, "pad_token_id": 0, "hidden_act": "gelu",
        "layer_norm_eps": 1e-5, "image_size": 32, "patch_size": 8, "num_channels": 3,
    });
    let with = |more: Value| {
        let mut config = base.clone();
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let bert = with(json!({"model_type": "bert", "architectures": ["BertForMaskedLM"]}));
    let dir = saved::<Encoder>(&bert);
    let ids = batches().remove(0).remainder(40);
    let logits = |base: &str| loaded::<Encoder>(dir.path(), base).1.logits(&ids).unwrap();
    assert_eq!(logits(STREAMED), logits("device"));
    let vit = with(json!({"model_type": "vit", "architectures": ["ViTForImageClassification"]}));
    let dir = saved::<ViTForImageClassification>(&vit);
    let images = nets::noise(&[2, 3, 32, 32], 1);
    let logits = |base: &str| {
        let (_vs, model) = loaded::<ViTForImageClassification>(dir.path(), base);
        model.logits(Inputs::images(&images)).unwrap()
    };
    assert_eq!(logits(STREAMED), logits("device"));
}

#[test]
fn a_matrix_that_was_written_to_keeps_what_was_written() {
    let dir = saved::<Decoder>(&decoder("llama"));
    let name = "model.layers.1.mlp.up_proj.weight";
    let found = ["device", STREAMED].map(|base| {
        let (vs, model) = loaded::<Decoder>(dir.path(), base);
        let _ = no_grad(|| vs.variables()[name].narrow(0, 3, 2).fill_(0.5));
        trained(&model, &vs, 2)
    });
    assert!(found[0] == found[1]);
}

#[test]
fn what_cannot_come_from_the_file_is_refused_by_its_name() {
    let dir = saved::<Decoder>(&decoder("llama"));
    let frozen = Frozen::default().place(Place::Streamed);
    for load in [
        Load::on(Device::Cpu).frozen("streamed, int8".parse().unwrap()),
        Load::on(Device::Cpu).frozen("streamed, nf4".parse().unwrap()),
    ] {
        let error = Decoder::from_pretrained_with(dir.path(), &load).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("'model.layers.0.self_attn.q_proj.weight'"), "{error}");
    }
    // Another kind is made of the file's when a block is entered.
    let load = Load::on(Device::Cpu).frozen(frozen).kind(Kind::BFloat16);
    let (_vs, streamed) = Decoder::from_pretrained_with(dir.path(), &load).unwrap();
    let (_vs, model) = Decoder::from_pretrained(dir.path(), Device::Cpu, Kind::BFloat16).unwrap();
    let ids = batches().remove(0);
    assert_eq!(streamed.logits(&ids).unwrap(), model.logits(&ids).unwrap());
}

/// Bytes of files' maps that this process has in memory.
fn of_files() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

/// The most of them while `f` runs.
fn peak(f: impl FnOnce()) -> usize {
    let (peak, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(of_files(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        f();
        done.store(true, Ordering::Relaxed);
    });
    peak.into_inner()
}

const CHILD: &str = "LN_TUNING_STREAMED_CHILD";

#[test]
fn a_step_of_a_streamed_base_holds_two_blocks_in_memory_and_not_all() {
    if std::env::var_os(CHILD).is_none() {
        // Memory is that of a process, so this has one of its own.
        let name = "streamed::a_step_of_a_streamed_base_holds_two_blocks_in_memory_and_not_all";
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output = child.env(CHILD, "1").args(["--exact", name, "--nocapture"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{text}{errors}");
        return;
    }
    let mut config = decoder("llama");
    for (key, value) in
        [("hidden_size", 384), ("intermediate_size", 1152), ("num_hidden_layers", 10)]
    {
        config[key] = json!(value);
    }
    for key in ["num_attention_heads", "num_key_value_heads"] {
        config[key] = json!(6);
    }
    config["head_dim"] = json!(64);
    let vs = VarStore::new(Device::Cpu);
    Decoder::new(&vs.root(), &DecoderConfig::from_value(&config).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    pretrained::save(&vs, dir.path(), &config.to_string()).unwrap();
    drop(vs);
    let all = std::fs::metadata(dir.path().join("model.safetensors")).unwrap().len() as usize;
    assert!(all > 70 << 20, "{all}");
    // libtorch's own pages come into memory.
    let small = saved::<Decoder>(&decoder("llama"));
    let (vs, model) = loaded::<Decoder>(small.path(), STREAMED);
    trained(&model, &vs, 1);
    let step = |base: &str| {
        let before = of_files();
        let (vs, model) = loaded::<Decoder>(dir.path(), base);
        // A part is in memory after loading and attaching, until the first step.
        trained(&model, &vs, 1);
        peak(|| drop(trained(&model, &vs, 1))) - before
    };
    let (mapped, streamed) = (step("mapped"), step(STREAMED));
    assert!(mapped > all * 9 / 10, "{mapped} of {all}");
    // Two blocks of ten, and what the system maps beside norms.
    assert!(streamed < all * 28 / 100, "{streamed} of {all}");
}
