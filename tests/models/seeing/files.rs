//! The files of a model of images and texts: of every version, and merged.

use super::*;

/// The layouts that a case's files are there in besides.
fn layouts(case: &str) -> &'static [&'static str] {
    match case {
        "gemma3" => &["a", "b", "c", "d"],
        "qwen2_5_vl" => &["a"],
        _ => &[],
    }
}

#[test]
fn files_of_every_version_open_and_so_do_those_of_a_model_without_a_head() {
    for case in ["gemma3", "idefics3", "qwen2_5_vl", "qwen3_vl"] {
        let (_, model, reference) = open(case);
        let inputs = inputs(&reference, "one", images(&reference, "one"));
        for layout in layouts(case) {
            let path = made().join(format!("{case}_{layout}"));
            let (_, model) = AnyModel::from_pretrained(path, Device::Cpu, None).unwrap();
            let off = off(&model.logits(inputs).unwrap(), &reference["one.logits"]);
            assert!(off <= 1e-4, "{layout}: {off}");
        }
        let path = made().join(format!("{case}_base"));
        let (_, base) = AnyModel::from_pretrained(&path, Device::Cpu, None).unwrap();
        let expected = model.hidden_states(inputs).unwrap();
        assert_eq!(base.hidden_states(inputs).unwrap(), expected, "{case}");
        assert_eq!(base.logits(inputs).unwrap_err().kind(), ErrorKind::InvalidState);
        // A head that is tied needs no file of its own.
        let load = Load::on(Device::Cpu).head(Head::LanguageModel);
        let headed = AnyModel::from_files(ModelFiles::open(&path).unwrap(), &load);
        match headed {
            Ok((_, headed)) => {
                assert_eq!(case, "gemma3");
                assert_eq!(headed.logits(inputs).unwrap(), model.logits(inputs).unwrap());
            }
            Err(error) => {
                assert_ne!(case, "gemma3");
                assert_eq!(error.kind(), ErrorKind::MissingKeys);
                assert!(error.to_string().contains("lm_head.weight"), "{error}");
            }
        }
    }
}

#[test]
fn what_is_merged_under_the_names_of_any_version_loads_in_transformers_and_computes_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut args = vec![made().to_str().unwrap().to_owned()];
    for case in ["gemma3", "gemma3_odd", "idefics3", "smolvlm", "qwen2_5_vl", "qwen3_vl"] {
        let (vs, model, reference) = open(case);
        let options = AdapterOptions::default().norms(Norms::All);
        let config = LnTuningConfig::default();
        let tuned = LnTuningModel::with_options(&vs, config, "default", &options).unwrap();
        let mut opt = tuned.optimizer(AdamW::default(), 0.1).unwrap();
        let batch = inputs(&reference, "two", images(&reference, "two"));
        let labels = &reference["two.labels"];
        let loss = model.loss(batch, labels, &LinearCrossEntropy::default()).unwrap();
        opt.backward_step(&loss).unwrap();
        let expected = model.logits(batch).unwrap();
        assert!(off(&expected, &reference["two.logits"]) > 1e-2, "{case}");
        let adapter = dir.path().join(case).join("adapter");
        tuned.save_pretrained(&adapter).unwrap();
        let others = layouts(case).iter().map(|layout| format!("_{layout}"));
        for layout in [String::new()].into_iter().chain(others) {
            let merged = dir.path().join(format!("{case}{layout}")).join("merged");
            merge(made().join(format!("{case}{layout}")), &adapter, &merged, |_, _| ()).unwrap();
            Tensor::write_safetensors(&[("logits", &expected)], merged.join("expected.st"))
                .unwrap();
            args.push(format!("{case}:{}", merged.display()));
        }
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    common::run_python("seeing.py", &args);
}
