//! The files of a LLaVA: of every version, in every kind and form, saved and merged.

use super::*;

#[test]
fn files_of_every_version_open_and_give_the_same_logits() {
    let reference = read("llama/reference.st");
    for layout in ["layout_a", "layout_b", "layout_c", "layout_d"] {
        let dir = made().join(layout);
        let (vs, model) = AnyModel::from_pretrained(&dir, Device::Cpu, None).unwrap();
        assert_eq!(model.model_type(), "llava");
        let off =
            super::off(&model.logits(batch(&reference, "one")).unwrap(), &reference["one.logits"]);
        assert!(off <= 1e-4, "{layout}: {off}");
        let files = ModelFiles::open(&dir).unwrap();
        assert_eq!(files.left_out().len(), if layout == "layout_a" { 2 } else { 0 });
        assert!(vs.variables().contains_key("model.vision_tower.pre_layrnorm.weight"));
        // Without a head, from files of a model with one.
        let load = Load::on(Device::Cpu).head(Head::None);
        let (vs, model) = ImageTextToText::from_pretrained_with(&dir, &load).unwrap();
        assert!(vs.variables().contains_key("language_model.layers.0.input_layernorm.weight"));
        let hidden = model.hidden_states(batch(&reference, "one")).unwrap();
        assert!(super::off(&hidden, &read("base/reference.st")["hidden"]) <= 1e-4);
        assert_eq!(
            model.logits(batch(&reference, "one")).unwrap_err().kind(),
            ErrorKind::InvalidState
        );
    }
    let (_, model) = open("base");
    let hidden = model.hidden_states(batch(&reference, "one")).unwrap();
    assert!(super::off(&hidden, &read("base/reference.st")["hidden"]) <= 1e-4);
    // Those of the program that LLaVA was first trained with lack the tower.
    let original = json!({
        "model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "hidden_size": 4096,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    });
    let error = ImageTextToTextConfig::from_value(&original).unwrap_err();
    assert!(error.to_string().contains("convert_llava_weights_to_hf.py"), "{error}");
}

#[test]
fn a_llava_loads_in_every_kind_and_form() {
    let reference = read("llama/reference.st");
    let dir = made().join("llama");
    let (_, model) = open("llama");
    let (inputs, images) = (batch(&reference, "one"), &reference["one.images"]);
    let expected = model.logits(inputs).unwrap();
    let half = images.to_kind(Kind::BFloat16);
    let load = |load: Load| ImageTextToText::from_pretrained_with(&dir, &load).unwrap();
    let cpu = || Load::on(Device::Cpu);
    let (vs, model) = load(cpu().kind(Kind::BFloat16));
    assert!(vs.variables().values().all(|tensor| tensor.kind() == Kind::BFloat16));
    assert_eq!(model.kind(), Kind::BFloat16);
    let logits = model.logits(inputs.pixel_values(&half)).unwrap().to_kind(Kind::Float);
    assert!(super::off(&logits, &expected) <= 0.1);
    assert_eq!(model.logits(inputs).unwrap_err().kind(), ErrorKind::Torch);
    for (form, most) in [(Form::Int8, 0.1), (Form::Nf4, 0.7)] {
        let (vs, model) = load(cpu().frozen(Frozen::default().form(form)));
        assert!(super::off(&model.logits(inputs).unwrap(), &expected) <= most, "{form:?}");
        // The connector trains, so it is kept as numbers.
        let kind = |name: &str| vs.variables()[name].kind();
        assert_eq!(kind("model.multi_modal_projector.linear_1.weight"), Kind::Float);
        assert_ne!(kind("model.language_model.layers.0.mlp.up_proj.weight"), Kind::Float);
        assert_ne!(kind("model.vision_tower.encoder.layers.0.mlp.fc1.weight"), Kind::Float);
    }
    let (_, model) = load(cpu().frozen(Frozen::default().place(Place::Streamed)));
    assert_eq!(model.logits(inputs).unwrap(), expected);
}

#[test]
fn what_is_saved_and_merged_loads_in_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let mut args = vec![made().to_str().unwrap().to_owned()];
    // The head of the second is tied, and no longer when the adapter has both.
    for case in ["llama", "qwen2", "next"] {
        let (vs, model) = open(case);
        let [saved, adapter] = ["saved", "adapter"].map(|name| dir.path().join(case).join(name));
        pretrained::save(&vs, &saved, &model.config().to_json()).unwrap();
        args.push(format!("{case}:{}", saved.display()));
        let reference = read(format!("{case}/reference.st"));
        let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
        let off =
            super::off(&model.logits(batch(&reference, "one")).unwrap(), &reference["one.logits"]);
        assert!(off <= 1e-4, "{case}");
        // PEFT's table: the language model's norms, its embeddings, its head, the projector.
        let trained = tuned.trainable_parameters().trainable;
        assert!(case == "next" || trained == PARAMETERS[usize::from(case == "qwen2")], "{case}");
        tuned.save_pretrained(&adapter).unwrap();
        let layouts: &[&str] = match case {
            "llama" => &["layout_a", "layout_b", "layout_c", "layout_d"],
            case => &[case],
        };
        for layout in layouts {
            let merged = dir.path().join(layout).join("merged");
            merge(made().join(layout), &adapter, &merged, |_, _| ()).unwrap();
            args.push(format!("{case}:{}", merged.display()));
        }
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    common::run_python("llava.py", &args);
}
