//! The norms of a model are found by name and shape, or by its type.

use crate::selection::{config, select, variable};
use ln_tuning::{AdamW, ErrorKind, LnTuningConfig, LnTuningModel, Norms, Selection, VariableInfo};
use tch::nn::{self, ModuleT};
use tch::{Device, Kind, Tensor};

#[test]
fn without_targets_every_norm_is_found_by_name_and_shape_and_nothing_else() {
    let chosen = select(&config()).unwrap();
    let norms: Vec<String> = (0..2)
        .flat_map(|i| ["attn.q_norm", "input_norm", "out_norm"].map(|n| format!("layers.{i}.{n}")))
        .chain(["norm".to_owned()])
        .collect();
    assert_eq!(chosen, norms);
}

#[test]
fn the_norms_of_an_open_clip_are_found_without_a_model_type_and_exported_by_name() {
    let mut variables = Vec::new();
    let norms = [
        "ln_final",
        "transformer.resblocks.0.ln_1",
        "transformer.resblocks.0.ln_2",
        "visual.ln_post",
        "visual.ln_pre",
        "visual.transformer.resblocks.0.ln_1",
        "visual.transformer.resblocks.0.ln_2",
    ];
    for norm in norms {
        variables.extend(["weight", "bias"].map(|name| variable(&format!("{norm}.{name}"), &[8])));
    }
    for tower in ["", "visual."] {
        let block = format!("{tower}transformer.resblocks.0");
        for (name, shape) in [
            ("attn.in_proj_weight", vec![24, 8]),
            ("attn.in_proj_bias", vec![24]),
            ("attn.out_proj.weight", vec![8, 8]),
            ("attn.out_proj.bias", vec![8]),
            ("mlp.c_fc.weight", vec![32, 8]),
            ("mlp.c_fc.bias", vec![32]),
            ("mlp.c_proj.weight", vec![8, 32]),
        ] {
            variables.push(variable(&format!("{block}.{name}"), &shape));
        }
    }
    variables.extend([
        variable("logit_scale", &[]),
        variable("text_projection", &[8, 8]),
        variable("token_embedding.weight", &[9, 8]),
        variable("visual.class_embedding", &[8]),
        variable("visual.conv1.weight", &[8, 3, 4, 4]),
        variable("visual.positional_embedding", &[5, 8]),
        variable("visual.proj", &[8, 8]),
    ]);
    let selection =
        Selection::new(&variables, &LnTuningConfig::default(), None, Norms::Peft).unwrap();
    let found: Vec<&str> = selection.modules().iter().map(|module| &*module.path).collect();
    assert_eq!(found, norms);
    let exported = selection.export_config(&LnTuningConfig::default());
    let again = Selection::new(&variables, &exported, None, Norms::Peft).unwrap();
    assert_eq!(again.modules(), selection.modules());
}

#[test]
fn the_norms_of_one_path_are_tuned_together_under_the_names_that_tch_gives_them() {
    let vs = nn::VarStore::new(Device::Cpu);
    for size in [4, 6, 4] {
        let _ = nn::layer_norm(vs.root() / "norm", vec![size], Default::default());
    }
    for _ in 0..2 {
        let _ = (vs.root() / "block" / "norm").var("weight", &[3], nn::Init::Const(1.));
        let _ = nn::linear(vs.root() / "up", 2, 2, Default::default());
    }
    let tuned = LnTuningModel::new(&vs, config()).unwrap();
    assert_eq!(tuned.trainable_parameters().trainable, 2 * (4 + 6 + 4) + 2 * 3);
    let names: Vec<String> =
        vs.variables().into_iter().filter(|(_, t)| t.requires_grad()).map(|(n, _)| n).collect();
    assert_eq!(names.len(), 8, "{names:?}");
    assert!(names.iter().filter(|name| name.contains("weight__")).count() == 3, "{names:?}");
    assert!(names.iter().all(|name| name.contains("norm")), "{names:?}");
    let dir = tempfile::tempdir().unwrap();
    tuned.save_pretrained(dir.path()).unwrap();
    tuned.unload().unwrap();
    LnTuningModel::from_pretrained(&vs, dir.path()).unwrap();
}

#[test]
fn a_name_that_only_looks_like_a_second_one_is_no_norm() {
    for name in ["weight__", "weight__a", "weight__2__b", "scale__2"] {
        let variables = [variable(&format!("norm.{name}"), &[4]), variable("norm.weight", &[4])];
        let error = Selection::new(&variables, &config(), None, Norms::Peft).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoTargetModules, "{name}");
    }
}

#[test]
fn batch_norms_are_named_as_such_and_can_be_tuned_by_name() {
    let vs = nn::VarStore::new(Device::Cpu);
    let norm = nn::batch_norm1d(vs.root() / "features" / "bn1", 4, Default::default());
    let _ = nn::linear(vs.root() / "up", 2, 2, Default::default());
    let error = LnTuningModel::new(&vs, config()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoTargetModules);
    let text = error.to_string();
    for word in ["BatchNorm", "'features.bn1'", "target_modules", "'bn1'"] {
        assert!(text.contains(word), "{text}");
    }
    // The cure that it names; the statistics are the adapter's.
    let tuned = LnTuningModel::new(&vs, config().target_modules(["bn1"])).unwrap();
    assert_eq!(tuned.trainable_parameters().trainable, 8);
    let x = Tensor::arange(8, (Kind::Float, Device::Cpu)).view([2, 4]);
    let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    opt.backward_step(&norm.forward_t(&x, true).square().sum(Kind::Float)).unwrap();
    let mean = || vs.variables()["features.bn1.running_mean"].sum(Kind::Float).double_value(&[]);
    assert!(mean() != 0.);
    tuned.unload().unwrap();
    assert_eq!(mean(), 0.);
}

#[test]
fn a_model_type_decides_by_pefts_table_or_by_ours() {
    let variables: Vec<VariableInfo> =
        ["input_layernorm", "self_attn.q_norm", "post_attention_layernorm"]
            .iter()
            .map(|name| variable(&format!("model.layers.0.{name}.weight"), &[8]))
            .chain([variable("model.norm.weight", &[8])])
            .collect();
    let count = |norms| {
        let selection = Selection::new(&variables, &config(), Some("qwen3"), norms).unwrap();
        selection.modules().len()
    };
    assert_eq!((count(Norms::Peft), count(Norms::All)), (1, 4));
}
