//! Adapters as they are at the time of the pass, and names that cannot be used.

use super::{attach, decoder, ids, shift, Case, NAMES};
use crate::nets::{bits, noise, only};
use ln_tuning::models::{Decoder, DecoderConfig, Head, Inputs, Model, ModelConfig};
use ln_tuning::{AdamW, ErrorKind, InterpolateOptions, LnTuningConfig, LnTuningModel};
use tch::nn::{self, Module, OptimizerConfig, VarStore};
use tch::{no_grad, Device, Kind, Tensor};

fn llama(kind: Kind, saved: &[&str]) -> Case<Decoder> {
    Case::new(&decoder("llama"), Head::LanguageModel, kind, saved)
}

/// Each change of an adapter shows in the next pass.
#[test]
fn rows_have_the_weights_of_now_whatever_has_changed_them() {
    let ids = ids();
    let names = ["a", "b", "c", "a"];
    for kind in [Kind::Float, Kind::BFloat16] {
        let mut case = llama(kind, &["lm_head"]);
        let mut last: Vec<Tensor> = Vec::new();
        let mut check = |case: &mut Case<Decoder>, names: &[&str], what: &str| {
            case.check(names, 1e-2, |model, mixed| {
                let inputs = Inputs::new(&ids);
                model.logits(if mixed { inputs.adapter_names(names) } else { inputs })
            });
            let now =
                no_grad(|| case.model.logits(Inputs::new(&ids).adapter_names(names)).unwrap());
            let again =
                no_grad(|| case.model.logits(Inputs::new(&ids).adapter_names(names)).unwrap());
            assert!(bits(&now) == bits(&again), "{what}");
            let known = last.iter().any(|before| bits(before) == bits(&now));
            assert!(!known, "{what} does not show");
            last.push(now);
        };
        check(&mut case, &names, "the first pass");
        shift(&mut case.tuned, "b", 7);
        check(&mut case, &names, "load_state_dict");
        // The adapter in use, by its optimiser, by another with marks, and by one without.
        case.tuned.set_requires_grad("c", true).unwrap();
        let mut opt = case.tuned.optimizer(AdamW::default(), 1e-1).unwrap();
        opt.backward_step(&case.model.logits(&ids).unwrap().square().mean(Kind::Float)).unwrap();
        drop(opt);
        check(&mut case, &names, "a step");
        let mut sgd = nn::Sgd::default().build(&case.vs, 0.5).unwrap();
        sgd.backward_step(&case.model.logits(&ids).unwrap().square().mean(Kind::Float));
        check(&mut case, &names, "a step of tch");
        let norm = case.vs.variables().remove("model.norm.weight").unwrap();
        no_grad(|| norm.shallow_clone().copy_(&(&norm * 1.5)));
        case.tuned.set_adapter("a").unwrap();
        check(&mut case, &names, "a write to a variable, and a switch");
        case.tuned.set_adapter("c").unwrap();
        case.tuned.delete_adapter("b").unwrap();
        case.tuned.add_adapter("b", only("input_layernorm")).unwrap();
        shift(&mut case.tuned, "b", 9);
        check(&mut case, &names, "another adapter of the same name");
        let options = InterpolateOptions::default().fall_back_to_base(true);
        case.tuned.interpolate_with(&[("a", 0.5), ("b", 0.5)], "d", &options).unwrap();
        check(&mut case, &["d", "b", "c", "a"], "interpolation");
        // New variables are replaced: the stack has more columns then.
        case.tuned.add_adapter("e", only("q_proj")).unwrap();
        shift(&mut case.tuned, "e", 11);
        check(&mut case, &["e", "b", "c", "a"], "an adapter with other modules");
        case.vs.double();
        check(&mut case, &names, "another kind");
    }
}

#[test]
fn many_adapters_come_and_go_and_rows_have_the_right_ones() {
    let ids = ids();
    let mut case = llama(Kind::Float, &[]);
    let name = |number: usize| format!("n{number}");
    for number in 0..40 {
        case.tuned.add_adapter(&name(number), LnTuningConfig::default()).unwrap();
        shift(&mut case.tuned, &name(number), 20 + number);
    }
    let check = |case: &mut Case<Decoder>, numbers: [usize; 4]| {
        let names = numbers.map(name);
        let names: [&str; 4] = [&names[0], &names[1], &names[2], &names[3]];
        case.check(&names, 0., |model, mixed| {
            let inputs = Inputs::new(&ids);
            model.logits(if mixed { inputs.adapter_names(&names) } else { inputs })
        });
    };
    for first in 0..10 {
        check(&mut case, [first, first + 10, first + 20, first + 30]);
    }
    for number in 0..38 {
        case.tuned.delete_adapter(&name(number)).unwrap();
    }
    check(&mut case, [38, 39, 38, 39]);
    case.tuned.add_adapter(&name(0), LnTuningConfig::default()).unwrap();
    shift(&mut case.tuned, &name(0), 99);
    check(&mut case, [0, 39, 0, 38]);
}

#[test]
fn names_that_cannot_be_used_are_refused_and_nothing_changes() {
    let ids = ids();
    let mut case = llama(Kind::Float, &[]);
    let logits = |case: &Case<Decoder>, names: &[&str]| {
        let found = no_grad(|| case.model.logits(Inputs::new(&ids).adapter_names(names)));
        found.map_err(|error| (error.kind(), error.to_string()))
    };
    let refused = |case: &Case<Decoder>, names: &[&str], kind, parts: &[&str]| {
        let (found, text) = logits(case, names).unwrap_err();
        assert_eq!(found, kind, "{text}");
        parts.iter().for_each(|part| assert!(text.contains(part), "{part}: {text}"));
    };
    let before = bits(&case.under("c", &|model| model.logits(&ids)));
    refused(&case, &["a", "b"], ErrorKind::ShapeMismatch, &["2 names", "4 rows", "__base__"]);
    refused(&case, &[], ErrorKind::ShapeMismatch, &["0 names"]);
    let unknown = ["a", "bb", "__base__", "other"];
    refused(&case, &unknown, ErrorKind::UnknownAdapter, &["'bb'", "'other'", "'b'", "__base__"]);
    refused(&case, &["", "a", "a", "a"], ErrorKind::UnknownAdapter, &["''"]);
    case.tuned.merge_adapter("c").unwrap();
    refused(&case, &NAMES, ErrorKind::InvalidState, &["'c' is merged", "unmerge_adapter"]);
    case.tuned.unmerge_adapter().unwrap();
    let guard = case.tuned.disable().unwrap();
    let error = case.model.logits(Inputs::new(&ids).adapter_names(&NAMES)).unwrap_err();
    assert!(error.to_string().contains("adapters are disabled"), "{error}");
    drop(guard);
    assert!(bits(&case.under("c", &|model| model.logits(&ids))) == before);
    case.tuned.add_adapter("positions", only("norm").modules_to_save(["lm_head"])).unwrap();
    assert!(logits(&case, &["positions", "a", "b", "a"]).is_ok());
    assert_eq!(
        case.tuned.add_adapter("__base__", LnTuningConfig::default()).unwrap_err().kind(),
        ErrorKind::InvalidAdapterName
    );
}

#[test]
fn models_without_adapters_and_with_those_of_another_var_store_are_told_so() {
    let ids = ids();
    let config = DecoderConfig::from_value(&decoder("llama")).unwrap();
    let make = || {
        let vs = VarStore::new(Device::Cpu);
        let model = Decoder::new(&vs.root(), &config).unwrap();
        (vs, model)
    };
    let ((first_vs, first), (second_vs, second)) = (make(), make());
    let tuned = attach(&first_vs, &[]);
    let names = Inputs::new(&ids).adapter_names(&NAMES);
    let error = second.logits(names).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidState);
    assert!(error.to_string().contains("no adapter is attached to the variables of this model"));
    // The base alone is what the model is without adapters.
    let base = Inputs::new(&ids).adapter_names(&["__base__"; 4]);
    assert!(bits(&second.logits(base).unwrap()) == bits(&second.logits(&ids).unwrap()));
    let mut other = LnTuningModel::with_adapter_name(&second_vs, only("norm"), "own").unwrap();
    let error = second.logits(names).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownAdapter, "{error}");
    other.add_adapter("a", only("norm")).unwrap();
    assert!(second.logits(Inputs::new(&ids).adapter_names(&["a", "own", "a", "own"])).is_ok());
    assert!(first.logits(names).is_ok());
    drop(tuned);
    assert_eq!(first.logits(names).unwrap_err().kind(), ErrorKind::InvalidState);
}

#[test]
fn by_adapter_sorts_rows_and_puts_them_back_also_behind_an_error_or_a_panic() {
    tch::set_num_threads(1);
    let vs = VarStore::new(Device::Cpu);
    let net = nn::layer_norm(vs.root() / "norm", vec![8], Default::default());
    let mut tuned = LnTuningModel::with_adapter_name(&vs, only("norm"), "a").unwrap();
    for name in ["b", "c"] {
        tuned.add_adapter(name, only("norm")).unwrap();
    }
    for (seed, name) in ["a", "b", "c"].into_iter().enumerate() {
        shift(&mut tuned, name, seed + 1);
    }
    tuned.set_adapter("c").unwrap();
    let x = noise(&[6, 3, 8], 4);
    let names = ["b", "a", "__base__", "b", "c", "a"];
    let mut order = Vec::new();
    let found = no_grad(|| {
        tuned.by_adapter(&names, |rows, name| {
            order.push((name.to_owned(), Vec::<i64>::try_from(rows).unwrap()));
            Ok(net.forward(&x.f_index_select(0, rows)?))
        })
    });
    let order: Vec<(&str, &[i64])> =
        order.iter().map(|(name, rows)| (name.as_str(), rows.as_slice())).collect();
    assert_eq!(order, [("b", &[0_i64, 3][..]), ("a", &[1, 5]), ("__base__", &[2]), ("c", &[4])]);
    let found = found.unwrap();
    for (row, name) in names.iter().enumerate() {
        let of = |x: &Tensor| no_grad(|| net.forward(&x.get(row as i64)));
        let expected = if *name == "__base__" {
            tuned.with_disabled(|| of(&x)).unwrap()
        } else {
            tuned.set_adapter(name).unwrap();
            of(&x)
        };
        tuned.set_adapter("c").unwrap();
        assert!(bits(&found.get(row as i64)) == bits(&expected), "{name}");
    }
    let active = |tuned: &LnTuningModel| tuned.active_adapter();
    let error = tuned.by_adapter(&names, |rows, name| {
        if name == "__base__" {
            Ok(x.f_narrow(0, 0, 2)?)
        } else {
            Ok(x.f_index_select(0, rows)?)
        }
    });
    assert_eq!(error.unwrap_err().kind(), ErrorKind::ShapeMismatch);
    assert_eq!(active(&tuned).as_deref(), Some("c"));
    let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        tuned.by_adapter(&names, |_, name| {
            if name == "a" {
                panic!("on purpose")
            } else {
                Ok(x.get(0).narrow(0, 0, 2))
            }
        })
    }));
    assert!(panics.is_err());
    assert_eq!(active(&tuned).as_deref(), Some("c"));
    let plain = no_grad(|| net.forward(&x));
    tuned.set_adapter("c").unwrap();
    assert!(bits(&no_grad(|| net.forward(&x))) == bits(&plain));
    let none: [&str; 0] = [];
    for (names, kind) in
        [(&none[..], ErrorKind::InvalidArgument), (&["a", "nobody"], ErrorKind::UnknownAdapter)]
    {
        assert_eq!(
            tuned.by_adapter(names, |_, _| panic!("is not called")).unwrap_err().kind(),
            kind
        );
    }
    tuned.merge_adapter("c").unwrap();
    let merged = tuned.by_adapter(&["a"], |_, _| panic!("is not called"));
    assert_eq!(merged.unwrap_err().kind(), ErrorKind::InvalidState);
}
