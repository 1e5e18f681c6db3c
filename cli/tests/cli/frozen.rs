//! `base` says how the frozen weights are kept.

use serde_json::Value;

use crate::program::{output, texts};
use crate::{model, training};

#[test]
fn a_base_in_few_bits_trains_as_far_and_its_adapter_fits_any_base() {
    let losses = |base: &str| {
        let training = training().set(&["max_steps=12", "eval_interval=12"]);
        training.run(&["out=o", "data.eval_fraction=0.1", &format!("base={base}")]);
        let (adapter, series) = (training.path("o/adapter"), training.series("o", "eval_loss"));
        let adapter = format!("mine={}", adapter.to_str().unwrap());
        let path = model("llama");
        let generate = |how: &str| {
            let arguments =
                ["--prompt", "the quick", "--max-new-tokens", "8", "--adapter", &adapter];
            let common = ["generate", "--cpu", "--model", path.to_str().unwrap()];
            let output = output(&[&common, &arguments[..], &["--base-weights", how]].concat());
            let (out, err) = texts(&output);
            assert!(output.status.success(), "{err}");
            out
        };
        // Beside the base that it was trained on, and another one.
        for how in [base, if base == "mapped" { "int8" } else { "mapped" }] {
            let text = generate(how);
            assert!(text.len() > 4, "{how}: {text}");
        }
        series.last().unwrap().1
    };
    let expected = losses("mapped");
    assert!((losses("int8") - expected).abs() < 0.05);
    assert!((losses("nf4, device") - expected).abs() < 0.3);
}

#[test]
fn a_dry_run_tells_how_the_base_is_kept_and_blocks_are_checkpointed_as_the_file_says() {
    let training = training().set(&["base=nf4"]);
    let dry = |more: &[&str]| {
        let output = training.command(&[]).arg("--dry-run").args(more).output().unwrap();
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{err}");
        out
    };
    let text = dry(&["--set", "checkpointing=all"]);
    for part in ["base: nf4, ", "matrices in ", "checkpointed: Recompute"] {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
    assert!(!dry(&[]).contains("checkpointed"));
    let report: Value = serde_json::from_str(&dry(&["--json"])).unwrap();
    assert_eq!(report["base"]["kept"], "nf4");
    let plain: Value = serde_json::from_str(&dry(&["--json", "--set", "base=mapped"])).unwrap();
    assert_eq!(plain["base"]["kept"], "mapped");
    let bytes = |report: &Value| report["base"]["bytes"].as_u64().unwrap();
    assert!(bytes(&report) * 4 < bytes(&plain), "{report} {plain}");
}

#[test]
fn a_streamed_base_trains_as_one_in_memory_bit_for_bit_with_its_batches_block_by_block() {
    let adapter = |base: &str, checkpointing: &str| {
        let training = training().set(&["max_steps=4", "accumulation=3", "batch_size=2"]);
        training.run(&[
            "out=o",
            &format!("base={base}"),
            &format!("checkpointing={checkpointing}"),
        ]);
        std::fs::read(training.path("o/adapter/adapter_model.safetensors")).unwrap()
    };
    assert!(adapter("streamed", "none") == adapter("device", "all"));
    let training = training().set(&["base=streamed", "accumulation=3"]);
    let output = training.command(&[]).arg("--dry-run").output().unwrap();
    let (text, errors) = texts(&output);
    assert!(output.status.success(), "{errors}");
    for part in ["base: streamed, ", "blocks are checkpointed", "each block together"] {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
    let error = training.refusal(&["checkpointing=2"]);
    assert!(error.contains("needs all blocks checkpointed"), "{error}");
    let error = training.refusal(&["base=streamed, nf4"]);
    for part in
        ["cannot be streamed from disk", "'streamed' alone, or 'gguf, streamed' for a GGUF file"]
    {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn ways_that_are_not_known_or_not_possible_are_refused() {
    let error = training().refusal(&["base=int4"]);
    assert!(error.contains("'base' is int4") && error.contains("gguf, int8, nf4"), "{error}");
    let error = training().refusal(&["base=null"]);
    assert!(
        error.contains("'base' is null") && error.contains("a form (gguf, int8, nf4, packed)"),
        "{error}"
    );
    let error = training().refusal(&["base=gguf"]);
    assert!(error.contains("holds no blocks of GGUF"), "{error}");
    let path = model("llama");
    let arguments = ["generate", "--model", path.to_str().unwrap(), "--prompt", "a"];
    let output = output(&[&arguments[..], &["--base-weights", "nf4,int8"]].concat());
    assert!(!output.status.success());
    let error = texts(&output).1;
    assert!(error.contains("two forms"), "{error}");
    let head = ["base=int8", "adapter.modules_to_save=[lm_head]"];
    let error = training().refusal(&head);
    assert!(error.contains("'lm_head.weight' is frozen and kept as int8"), "{error}");
}
