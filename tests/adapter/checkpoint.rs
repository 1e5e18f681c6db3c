//! PEFT directories: what every release wrote is read; what we write is whole, ordered and keeps what stands there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::nets::{self, bits, named_bits, snapshot, Net};
use ln_tuning::{LnTuningConfig, LnTuningModel, LoadOptions, SaveKind, SaveOptions};
use tch::{Kind, Tensor};

fn golden() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adapters");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    assert_eq!(paths.len(), 9);
    paths
}

fn tuned(net: &Net) -> LnTuningModel {
    LnTuningModel::new(&net.vs, LnTuningConfig::default().modules_to_save(["head"])).unwrap()
}

fn expected(path: &Path) -> BTreeMap<String, nets::Bits> {
    named_bits(&Tensor::read_safetensors(path).unwrap())
}

/// By the names of variables.
fn state(tuned: &LnTuningModel, name: &str) -> BTreeMap<String, nets::Bits> {
    let state = tuned.state_dict(name).unwrap().into_iter();
    let name = |key: String| key.replace("base_model.model.", "").replace(".ln_tuning_layers", "");
    state.map(|(key, tensor)| (name(key), bits(&tensor))).collect()
}

#[test]
fn adapters_of_every_release_of_peft_are_read_bit_for_bit() {
    for dir in golden() {
        let net = Net::new(Kind::Float);
        let before = snapshot(&net.vs);
        let (mut tuned, report) =
            LnTuningModel::from_pretrained_with(&net.vs, &dir, "mine", &LoadOptions::default())
                .unwrap();
        assert_eq!(
            state(&tuned, "mine"),
            expected(&dir.join("expected_default.safetensors")),
            "{dir:?}"
        );
        assert!(
            report.missing_keys.is_empty() && report.unexpected_keys.is_empty(),
            "{dir:?}: {report:?}"
        );
        // Up to 0.19 every file held the tensors of all adapters.
        let leaked = std::fs::read(dir.join("adapter_model.safetensors")).unwrap();
        let leaked = String::from_utf8_lossy(&leaked).contains("ln_tuning_layers.other");
        assert_eq!(!report.foreign_keys.is_empty(), leaked, "{dir:?}: {report:?}");

        // The adapter that PEFT called `other`, under its own name.
        tuned.load_adapter(dir.join("other"), "other", &LoadOptions::default()).unwrap();
        assert_eq!(
            state(&tuned, "other"),
            expected(&dir.join("expected_other.safetensors")),
            "{dir:?}"
        );
        assert_eq!(
            state(&tuned, "mine"),
            expected(&dir.join("expected_default.safetensors")),
            "{dir:?}"
        );

        // A version that was read is kept.
        let out = tempfile::tempdir().unwrap();
        tuned
            .save_pretrained_with(out.path(), &SaveOptions::default().selected_adapters(["mine"]))
            .unwrap();
        let written =
            LnTuningConfig::from_file(out.path().join("mine/adapter_config.json")).unwrap();
        let release = dir.file_name().unwrap().to_str().unwrap();
        let read = LnTuningConfig::from_file(dir.join("adapter_config.json")).unwrap();
        assert_eq!(written.peft_version, read.peft_version, "{release}");
        tuned.unload().unwrap();
        assert_eq!(snapshot(&net.vs), before);
    }
}

#[test]
fn saving_loading_and_saving_writes_the_same_bytes() {
    for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double] {
        let dir = tempfile::tempdir().unwrap();
        let net = Net::new(kind);
        let first = tuned(&net);
        net.train(&first, 3);
        first.save_pretrained(dir.path().join("a")).unwrap();
        let other = Net::new(kind);
        let second = LnTuningModel::from_pretrained(&other.vs, dir.path().join("a")).unwrap();
        assert_eq!(bits(&net.logits()), bits(&other.logits()), "{kind:?}");
        second.save_pretrained(dir.path().join("b")).unwrap();
        for name in ["adapter_config.json", "adapter_model.safetensors", "README.md"] {
            let read = |folder: &str| std::fs::read(dir.path().join(folder).join(name)).unwrap();
            assert!(read("a") == read("b"), "{name} in {kind:?}");
        }
    }
}

#[test]
fn masters_are_saved_in_f32_and_on_request_in_the_models_kind() {
    let dir = tempfile::tempdir().unwrap();
    let net = Net::new(Kind::BFloat16);
    let tuned = tuned(&net);
    net.train(&tuned, 3);
    let kinds = |options: &SaveOptions, folder: &str| {
        let dir = dir.path().join(folder);
        tuned.save_pretrained_with(&dir, options).unwrap();
        let tensors = Tensor::read_safetensors(dir.join("adapter_model.safetensors")).unwrap();
        let live = LnTuningModel::from_pretrained(&Net::new(Kind::BFloat16).vs, &dir).unwrap();
        let size = std::fs::metadata(dir.join("adapter_model.safetensors")).unwrap().len();
        assert!(tensors.iter().all(|(_, t)| t.kind() == tensors[0].1.kind()));
        (tensors[0].1.kind(), size, live.state_dict("default").unwrap())
    };
    let (kind, size, master) = kinds(&SaveOptions::default(), "master");
    let (small_kind, small, rounded) =
        kinds(&SaveOptions::default().kind(SaveKind::Model), "model");
    assert_eq!((kind, small_kind), (Kind::Float, Kind::BFloat16));
    assert!(small < size);
    let mut lost = 0;
    for ((key, master), (_, rounded)) in master.iter().zip(&rounded) {
        assert_eq!(
            bits(&master.to_kind(Kind::BFloat16)),
            bits(&rounded.to_kind(Kind::BFloat16)),
            "{key}"
        );
        lost += i64::from(bits(master) != bits(rounded));
    }
    assert!(lost > 0, "the masters hold more than bf16 does");
}

#[test]
fn the_default_adapter_lies_at_the_root_and_others_in_folders() {
    let dir = tempfile::tempdir().unwrap();
    let net = Net::new(Kind::Float);
    let mut tuned = tuned(&net);
    tuned.add_adapter("second", LnTuningConfig::default().target_modules(["norm2"])).unwrap();
    tuned.save_pretrained(dir.path()).unwrap();
    let mut files: Vec<String> = Vec::new();
    for path in [dir.path().to_owned(), dir.path().join("second")] {
        for entry in std::fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            files.push(path.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned());
        }
    }
    files.sort();
    assert_eq!(
        files,
        [
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
            "second",
            "second/adapter_config.json",
            "second/adapter_model.safetensors"
        ]
    );
    // No adapter's tensors in the file of another.
    let second =
        Tensor::read_safetensors(dir.path().join("second/adapter_model.safetensors")).unwrap();
    let mut keys: Vec<&str> = second.iter().map(|(key, _)| key.as_str()).collect();
    keys.sort();
    let key = |name: &str| format!("base_model.model.norm2.ln_tuning_layers.{name}");
    assert_eq!(keys, [key("bias"), key("weight")]);
}

#[test]
fn a_model_card_keeps_what_a_person_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let card = dir.path().join("README.md");
    let net = Net::new(Kind::Float);
    let config = LnTuningConfig::default().base_model("org/base");
    let tuned = LnTuningModel::new(&net.vs, config).unwrap();
    tuned.save_pretrained(dir.path()).unwrap();
    let fresh = std::fs::read_to_string(&card).unwrap();
    assert!(fresh.starts_with("---\nlibrary_name: peft\nbase_model: org/base\n"), "{fresh}");
    assert!(fresh.contains("- base_model:adapter:org/base"), "{fresh}");
    tuned.save_pretrained(dir.path()).unwrap();
    assert_eq!(std::fs::read_to_string(&card).unwrap(), fresh, "saving twice changes nothing");

    let mine = "---\nlicense: mit\nlibrary_name: other\ntags:\n- mine\n---\n\n# My adapter\n\nHand-written.\n";
    std::fs::write(&card, mine).unwrap();
    tuned.save_pretrained(dir.path()).unwrap();
    let kept = std::fs::read_to_string(&card).unwrap();
    for line in ["license: mit", "- mine", "library_name: peft", "# My adapter", "Hand-written."] {
        assert!(kept.contains(line), "'{line}' is not in {kept}");
    }
    tuned.save_pretrained(dir.path()).unwrap();
    assert_eq!(std::fs::read_to_string(&card).unwrap(), kept);
}

#[test]
fn keys_are_renamed_on_the_way_out_and_in() {
    let dir = tempfile::tempdir().unwrap();
    let net = Net::new(Kind::Float);
    let tuned = tuned(&net);
    net.train(&tuned, 2);
    let out = SaveOptions::default()
        .key_mapping([(r"^norm(\d)", r"encoder.layer.\1.layernorm"), ("^head", "score")]);
    tuned.save_pretrained_with(dir.path(), &out).unwrap();
    let tensors = Tensor::read_safetensors(dir.path().join("adapter_model.safetensors")).unwrap();
    let keys: Vec<&str> = tensors.iter().map(|(key, _)| key.as_str()).collect();
    assert!(keys.contains(&"base_model.model.encoder.layer.1.layernorm.ln_tuning_layers.bias"));
    assert!(keys.contains(&"base_model.model.score.weight"));

    // The configuration speaks of the other names, so the tensors go in through `load_state_dict`.
    let other = Net::new(Kind::Float);
    let mut loaded = self::tuned(&other);
    let back = LoadOptions::default()
        .key_mapping([(r"^encoder\.layer\.(\d)\.layernorm", r"norm\1"), ("^score", "head")]);
    loaded.load_state_dict("default", &tensors, &back).unwrap();
    assert_eq!(state(&loaded, "default"), state(&tuned, "default"));
}

#[test]
fn keys_without_the_prefix_of_peft_are_read_too() {
    let net = Net::new(Kind::Float);
    let first = tuned(&net);
    net.train(&first, 2);
    let strip = |(key, tensor): (String, Tensor)| (key.replace("base_model.model.", ""), tensor);
    let stripped: Vec<_> = first.state_dict("default").unwrap().into_iter().map(strip).collect();
    let other = Net::new(Kind::Float);
    let mut second = tuned(&other);
    second.load_state_dict("default", &stripped, &LoadOptions::default()).unwrap();
    assert_eq!(state(&first, "default"), state(&second, "default"));
}

#[test]
fn no_temporary_file_stays_behind() {
    let dir = tempfile::tempdir().unwrap();
    let net = Net::new(Kind::Float);
    let tuned = tuned(&net);
    for _ in 0..2 {
        tuned.save_pretrained(dir.path().join("deep/er")).unwrap();
    }
    assert_eq!(std::fs::read_dir(dir.path().join("deep/er")).unwrap().count(), 3);
}
