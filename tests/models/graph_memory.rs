//! The graph of a training step keeps what its backward pass reads, and nothing else.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::nets;
use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Decoder, DecoderConfig, Load, Model, ModelConfig};
use ln_tuning::{pretrained, LnTuningConfig, LnTuningModel};
use serde_json::json;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

const BLOCKS: f64 = 6.;
const TOKENS: i64 = 1_024;

/// Private memory of this process in MB.
fn memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.
}

/// The child of the next test: says how many MB the graph of a loss holds per block.
#[test]
fn graph_child() {
    let Some(dir) = std::env::var_os("LN_TUNING_GRAPH") else { return };
    tch::set_num_threads(1);
    let kind = match std::env::var("LN_TUNING_GRAPH_KIND").as_deref() {
        Ok("bf16") => Kind::BFloat16,
        _ => Kind::Float,
    };
    let load = Load::on(Device::Cpu).kind(kind);
    let (vs, model) = Decoder::from_pretrained_with(Path::new(&dir), &load).unwrap();
    let _tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
    let ids = Tensor::arange(TOKENS, (Kind::Int64, Device::Cpu)).remainder(61).view([1, TOKENS]);
    let loss = || model.loss(&ids, &ids, &LinearCrossEntropy::default()).unwrap();
    // Libraries take memory for themselves at first.
    drop(loss());
    let before = memory();
    let loss = loss();
    println!("a block holds {} MB", (memory() - before) / BLOCKS);
    loss.backward();
}

#[test]
fn no_input_of_a_frozen_matrix_is_kept_for_the_backward_pass() {
    let config = json!({
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": BLOCKS as i64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 61, "max_position_embeddings": TOKENS,
    });
    let vs = VarStore::new(Device::Cpu);
    Decoder::new(&vs.root(), &DecoderConfig::from_value(&config).unwrap()).unwrap();
    nets::fill(&vs, 0.05);
    let dir = tempfile::tempdir().unwrap();
    pretrained::save(&vs, dir.path(), &config.to_string()).unwrap();
    let start = |kind: &str, products: &str, fused: &str| -> Child {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "graph_memory::graph_child", "--nocapture"]);
        child.env("LN_TUNING_GRAPH", dir.path()).env("LN_TUNING_GRAPH_KIND", kind);
        child.env("LN_TUNING_F32_PRODUCTS", products).env("LN_TUNING_FUSED", fused);
        // Freed memory is given back at once.
        child.env("MALLOC_MMAP_THRESHOLD_", "65536").env("MALLOC_TRIM_THRESHOLD_", "65536");
        child.stdout(Stdio::piped()).spawn().unwrap()
    };
    let rows = [
        ("f32", "convolution", "1"),
        ("f32", "matmul", "1"),
        ("bf16", "matmul", "1"),
        ("f32", "convolution", "0"),
    ];
    let children = rows.map(|(kind, products, fused)| start(kind, products, fused));
    let found = children.map(|child| {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let words = text.split("a block holds ").nth(1).unwrap_or_else(|| panic!("{text}"));
        words.split(' ').next().unwrap().parse::<f64>().unwrap()
    });
    // 1,024 tokens in f32: 1 MB for the input of each norm, for queries, for keys and values together and for what
    // attention gives; 4 MB for the gate and 4 for what it is multiplied with. The inputs of matrices would be another 1,
    // 1 and 4.
    let [convolution, matmul, bf16, libtorch] = found;
    println!("{found:?}");
    for f32 in [convolution, matmul] {
        assert!((12.5..14.5).contains(&f32), "{found:?}");
    }
    assert!((6.2..8.5).contains(&bf16), "{found:?}");
    assert!(libtorch > 17., "{found:?}");
}
