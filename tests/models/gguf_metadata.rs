//! A GGUF file is a model wherever a directory is one, and what is not understood in it is refused.

use std::cell::Cell;
use std::rc::Rc;

use crate::gguf_tiny::Entry::{self, Flags, Number, Text, Whole, Wholes};
use crate::gguf_tiny::Gguf;
use ln_tuning::models::{AnyModel, Decoder, DecoderConfig, Head, Load, Model, ModelConfig};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::{AdamW, ErrorKind, LnTuningConfig, LnTuningModel};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

fn ids() -> Tensor {
    Tensor::arange(8, (Kind::Int64, Device::Cpu)).view([2, 4])
}

#[test]
fn a_gguf_file_is_a_model_by_its_path_and_as_the_only_one_in_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let file = Gguf::llama().write(dir.path(), "tiny.GGUF");
    let (_vs, model) = AnyModel::from_pretrained(&file, Device::Cpu, None).unwrap();
    assert_eq!((model.model_type(), model.kind()), ("llama", Kind::Float));
    let logits = model.logits(&ids()).unwrap();
    assert_eq!(logits.size(), [2, 4, 10]);
    let (_vs, same) = Decoder::from_pretrained(dir.path(), Device::Cpu, None).unwrap();
    assert_eq!(same.logits(&ids()).unwrap(), logits);
    std::fs::write(dir.path().join("README.md"), "a model").unwrap();
    let files = ModelFiles::open(dir.path()).unwrap();
    assert_eq!((files.head(), files.model_type()), (Head::LanguageModel, Some("llama")));
    assert_eq!(files.gguf().unwrap().path(), file);
    assert_eq!(files.config()["rms_norm_eps"], 1e-5);
    assert_eq!(files.generation_config().unwrap(), None);
    assert!(files.variables().iter().all(|variable| variable.kind == Kind::Float));

    Gguf::llama().write(dir.path(), "other.gguf");
    let error = ModelFiles::open(dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().ends_with("other.gguf, tiny.GGUF"), "{error}");
    let error = ModelFiles::open(dir.path().join("none.gguf")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingFile, "{error}");
    let error = ModelFiles::open(dir.path().join("README.md")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CorruptFile, "{error}");
}

#[test]
fn heads_progress_kinds_and_adapters_are_those_of_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = Gguf::llama().tensor("rope_freqs.weight", &[2]).tensor("output.weight", &[10, 8]);
    let file = gguf.write(dir.path(), "tiny.gguf");
    let last = Rc::new(Cell::new((0, 0)));
    let seen = last.clone();
    let files = ModelFiles::open(&file).unwrap();
    // The head is the embedding, byte for byte.
    assert_eq!(files.config()["tie_word_embeddings"], true);
    assert_eq!(files.left_out(), ["rope_freqs.weight", "output.weight"]);
    let files = files.with_progress(move |done, total| seen.set((done, total)));
    let load = Load::on(Device::Cpu).kind(Kind::BFloat16).labels(["ham", "spam", "eggs"]);
    let (vs, model) = Decoder::from_files(files, &load).unwrap();
    assert_eq!(model.logits(&ids()).unwrap().size(), [2, 3]);
    assert!(vs.variables().values().all(|variable| variable.kind() == Kind::BFloat16));
    assert!(last.get().0 > 0 && last.get().0 == last.get().1);

    let (vs, model) = Decoder::from_pretrained(&file, Device::Cpu, None).unwrap();
    let before = model.logits(&ids()).unwrap();
    let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
    let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    opt.backward_step(&model.logits(&ids()).unwrap().square().mean(Kind::Float)).unwrap();
    let after = model.logits(&ids()).unwrap();
    assert_ne!(before, after);
    let adapter = dir.path().join("adapter");
    tuned.save_pretrained(&adapter).unwrap();
    let saved = Tensor::read_safetensors(adapter.join("adapter_model.safetensors")).unwrap();
    let key = "base_model.model.model.layers.1.post_attention_layernorm.ln_tuning_layers.weight";
    assert!(saved.iter().any(|(name, _)| name == key), "{saved:?}");
    let (vs, model) = Decoder::from_pretrained(&file, Device::Cpu, None).unwrap();
    let _tuned = LnTuningModel::from_pretrained(&vs, &adapter).unwrap();
    assert_eq!(model.logits(&ids()).unwrap(), after);

    let out = dir.path().join("merged.gguf");
    ln_tuning::merge(&file, &adapter, &out, |_, _| ()).unwrap();
    let (_vs, merged) = Decoder::from_pretrained(&out, Device::Cpu, None).unwrap();
    assert_eq!(merged.logits(&ids()).unwrap(), after);
}

#[test]
fn what_a_file_says_counts() {
    let dir = tempfile::tempdir().unwrap();
    let config = |gguf: Gguf| {
        let file = gguf.write(dir.path(), "tiny.gguf");
        let files = ModelFiles::open(&file).unwrap_or_else(|error| panic!("{error}"));
        Decoder::from_pretrained(&file, Device::Cpu, None)
            .unwrap_or_else(|error| panic!("{error}"));
        (files.config().clone(), files.generation_config().unwrap())
    };
    let llama = Gguf::llama;
    let (plain, _) = config(llama());
    assert_eq!(plain["rope_parameters"]["rope_theta"], 10_000.);
    assert_eq!(plain["vocab_size"], 10);
    // None of these changes anything.
    for gguf in [
        llama().with("llama.expert_count", Whole(0)).with("llama.rope.dimension_count", Whole(4)),
        llama().with("llama.rope.scaling.type", Text("none")),
        llama().with("llama.rope.scaling.factor", Number(1.)),
        llama().with("llama.attention.head_count_kv", Wholes(vec![1, 1])),
        llama().with("llama.attention.value_length", Whole(4)),
        llama().with("llama.attention.sliding_window", Whole(0)),
        llama().with("llama.tensor_data_layout", Text("Meta AI original pth")),
        llama().with("llama.vocab_size", Whole(10)),
        llama().with("quantize.imatrix.file", Text("somewhere")),
        llama().with("llama2.something", Number(3.)),
    ] {
        assert_eq!(config(gguf).0, plain);
    }
    let wide = |window| Gguf::granite().with("granite.attention.sliding_window", Whole(window));
    assert_eq!(config(wide(32)).0, config(wide(0)).0);
    let (mistral, _) = config(llama().with("llama.attention.sliding_window", Whole(7)));
    assert_eq!(
        (&mistral["model_type"], &mistral["sliding_window"]),
        (&"mistral".into(), &7.into())
    );
    let (_, ends) = config(llama().with("tokenizer.ggml.eot_token_id", Whole(5)));
    assert_eq!(ends.unwrap()["eos_token_id"], serde_json::json!([2, 5]));
    // Frequencies that are those of no known rope are kept as they are.
    let (factors, _) =
        config(llama().tensor("rope_freqs.weight", &[2]).with("llama.rope.freq_base", Number(2.)));
    assert_eq!(factors["rope_parameters"]["long_factor"], serde_json::json!([1., 2.]));
    let linear = llama().with("llama.rope.scale_linear", Number(4.));
    assert_eq!(config(linear).0["rope_parameters"]["factor"], 4.);
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let llama = Gguf::llama;
    for (gguf, kind, named) in [
        (
            llama().with("general.architecture", Text("mamba")),
            ErrorKind::Unsupported,
            "gemma3, gpt2",
        ),
        (llama().without("general.architecture"), ErrorKind::InvalidConfig, "general.architecture"),
        (llama().with("general.type", Text("adapter")), ErrorKind::Unsupported, "'adapter'"),
        (llama().with("llama.expert_count", Whole(8)), ErrorKind::Unsupported, "experts"),
        (
            llama().with("llama.attention.scale", Number(0.3)),
            ErrorKind::Unsupported,
            "attention.scale",
        ),
        (
            Gguf::granite().with("granite.attention.sliding_window", Whole(31)),
            ErrorKind::Unsupported,
            "sliding_window",
        ),
        (llama().with("llama.logit_scale", Number(2.)), ErrorKind::Unsupported, "logit_scale"),
        (llama().without("llama.block_count"), ErrorKind::InvalidConfig, "block_count"),
        (llama().with("llama.block_count", Whole(0)), ErrorKind::InvalidConfig, "block_count"),
        (llama().with("llama.block_count", Text("2")), ErrorKind::InvalidConfig, "block_count"),
        (llama().with("llama.block_count", Whole(3)), ErrorKind::MissingKeys, "model.layers.2."),
        (llama().with("llama.block_count", Whole(1)), ErrorKind::UnexpectedKeys, "model.layers.1."),
        (
            llama().with("llama.attention.head_count_kv", Wholes(vec![1, 2])),
            ErrorKind::Unsupported,
            "one number for all blocks",
        ),
        (llama().with("llama.attention.head_count", Whole(3)), ErrorKind::ShapeMismatch, "attn_q"),
        (
            llama().with("llama.attention.key_length", Whole(6)),
            ErrorKind::Unsupported,
            "value_length",
        ),
        (llama().with("llama.attention.causal", Flags(vec![])), ErrorKind::InvalidConfig, "causal"),
        (
            llama().with("llama.attention.layer_norm_rms_epsilon", Number(f32::NAN)),
            ErrorKind::InvalidConfig,
            "finite",
        ),
        (
            llama().with("llama.rope.dimension_count", Whole(2)),
            ErrorKind::Unsupported,
            "dimension_count",
        ),
        (llama().with("llama.rope.scaling.type", Text("spiral")), ErrorKind::Unsupported, "spiral"),
        (llama().with("llama.rope.scaling.type", Text("yarn")), ErrorKind::Unsupported, "factor"),
        (
            llama().with("llama.rope.scaling.attn_factor", Number(2.)),
            ErrorKind::Unsupported,
            "attn_factor",
        ),
        (llama().with("llama.tensor_data_layout", Text("mine")), ErrorKind::Unsupported, "is mine"),
        (llama().with("llama.vocab_size", Whole(11)), ErrorKind::Unsupported, "vocab_size"),
        (llama().tensor("rope_freqs.weight", &[3]), ErrorKind::Unsupported, "rope_freqs.weight"),
        (
            llama().tensor("blk.0.attn_sinks.weight", &[2]),
            ErrorKind::UnexpectedKeys,
            "blk.0.attn_sinks",
        ),
        (
            llama().tensor("blk.00.attn_q.weight", &[8, 8]),
            ErrorKind::UnexpectedKeys,
            "blk.00.attn_q",
        ),
        (llama().tensor("blk.0.attn_q.scale", &[8]), ErrorKind::UnexpectedKeys, "attn_q.scale"),
        (llama().without("token_embd.weight"), ErrorKind::MissingKeys, "token_embd.weight"),
        (llama().tensor("blk.0.attn_q.weight", &[8, 9]), ErrorKind::ShapeMismatch, "q_proj"),
    ] {
        let file = gguf.write(dir.path(), "tiny.gguf");
        let error = Decoder::from_pretrained(&file, Device::Cpu, None).map(drop).unwrap_err();
        assert_eq!(error.kind(), kind, "{named}: {error}");
        assert!(error.to_string().contains(named), "{named}: {error}");
        let of_the_file = kind != ErrorKind::ShapeMismatch || named == "attn_q";
        assert!(!of_the_file || error.to_string().contains("tiny.gguf"), "{named}: {error}");
    }
}

/// Keys that some architecture reads.
const KEYS: [&str; 36] = [
    "attention.causal",
    "attention.clamp_kqv",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.max_alibi_bias",
    "attention.scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.value_length",
    "attn_logit_softcapping",
    "block_count",
    "context_length",
    "embedding_length",
    "embedding_scale",
    "expert_count",
    "feed_forward_length",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_ext_factor",
    "tensor_data_layout",
    "use_parallel_residual",
    "vocab_size",
];

const ARCHITECTURES: [&str; 19] = [
    "bloom",
    "command-r",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3",
    "gpt2",
    "gptneox",
    "granite",
    "llama",
    "olmo",
    "olmo2",
    "phi2",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
    "stablelm",
    "starcoder2",
];

fn entry() -> impl Strategy<Value = Entry> {
    let sizes = prop_oneof![0..40_u32, any::<u32>()];
    let texts = prop::sample::select(vec!["none", "linear", "yarn", "longrope", "jploski", "?"]);
    prop_oneof![
        4 => sizes.clone().prop_map(Whole),
        3 => prop_oneof![any::<f32>(), -2_f32..9.].prop_map(Number),
        2 => texts.prop_map(Text),
        1 => prop::collection::vec(any::<bool>(), 0..4).prop_map(Flags),
        1 => prop::collection::vec(sizes, 0..4).prop_map(Wholes),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_metadata_is_a_configuration_or_an_error(
        architecture in prop::sample::select(ARCHITECTURES.to_vec()),
        changes in prop::collection::vec((prop::sample::select(KEYS.to_vec()), entry()), 0..4),
        factors in prop::option::of(0_i64..5),
    ) {
        let mut gguf = Gguf::llama().with("general.architecture", Text(architecture));
        for (key, _) in &mut gguf.entries {
            *key = key.replace("llama.", &format!("{architecture}."));
        }
        let eps = format!("{architecture}.attention.layer_norm_epsilon");
        gguf = gguf.with(&eps, Number(1e-5));
        for (key, entry) in changes {
            gguf = gguf.with(&format!("{architecture}.{key}"), entry);
        }
        for name in ["rope_freqs", "rope_factors_long", "rope_factors_short"] {
            if let Some(factors) = factors {
                gguf = gguf.tensor(&format!("{name}.weight"), &[factors]);
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let file = gguf.write(dir.path(), "tiny.gguf");
        if let Ok(files) = ModelFiles::open(&file) {
            let _ = DecoderConfig::from_value(files.config());
            for variable in files.variables() {
                let _ = files.tensor(&variable.name);
                let _ = files.quantised(&variable.name);
            }
        }
    }
}
