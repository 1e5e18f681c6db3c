//! The learned shift, made smaller or larger, on saving and in memory.

use std::path::Path;

use ln_tuning::pretrained::{self, ModelFiles};
use ln_tuning::{ErrorKind, LnTuningConfig, LnTuningModel, SaveOptions, SavedAdapter};
use tch::{Kind, Tensor};

use crate::nets::{bits, Net};

/// An adapter on norms and head, which differs from the base by little and by much, and in the sign of 0.
fn tuned(net: &Net) -> LnTuningModel {
    tch::no_grad(|| {
        for (name, tensor) in net.vs.variables() {
            if name.starts_with("norm") {
                let _ = tensor.narrow(0, 0, 1).fill_(-0.);
            }
        }
    });
    let config = LnTuningConfig::default().modules_to_save(["head"]);
    let mut tuned = LnTuningModel::new(&net.vs, config).unwrap();
    net.train(&tuned, 2);
    let mut state = tuned.state_dict("default").unwrap();
    tch::no_grad(|| {
        for (_, tensor) in state.iter_mut().filter(|(_, tensor)| tensor.dim() == 1) {
            // The difference from 1 has more digits than f64.
            let _ = tensor.narrow(0, 1, 1).fill_(1e-25);
        }
    });
    tuned.load_state_dict("default", &state, &Default::default()).unwrap();
    tuned
}

fn saved(tuned: &LnTuningModel, dir: &Path, scale: f64) -> Vec<(String, Tensor)> {
    tuned.save_pretrained_with(dir, &SaveOptions::default().scale(scale)).unwrap();
    SavedAdapter::open(dir).unwrap().tensors
}

#[test]
fn a_shift_is_scaled_alike_on_saving_in_memory_and_from_files_and_exactly_at_0_and_1() {
    for kind in [Kind::Float, Kind::Double, Kind::BFloat16] {
        let (dir, net) = (tempfile::tempdir().unwrap(), Net::new(kind));
        let base = dir.path().join("base");
        let mut tuned = tuned(&net);
        tuned
            .with_disabled(|| pretrained::save(&net.vs, &base, r#"{"model_type": "mine"}"#))
            .unwrap()
            .unwrap();
        let whole = saved(&tuned, &dir.path().join("whole"), 1.);
        let before = ModelFiles::open(&base).unwrap();
        let start = |key: &str| {
            let name = key.strip_prefix("base_model.model.").unwrap();
            before.tensor(&name.replace("ln_tuning_layers.", "")).unwrap()
        };
        for scale in [0., 1., 0.7, -0.5, 1.5] {
            let name = format!("scaled {scale}");
            tuned.interpolate(&[("default", scale)], &name.replace('.', "_")).unwrap();
            let in_memory = tuned.state_dict(&name.replace('.', "_")).unwrap();
            tuned.delete_adapter(&name.replace('.', "_")).unwrap();
            let written = saved(&tuned, &dir.path().join(&name), scale);
            let from_files = SavedAdapter::open(dir.path().join("whole")).unwrap();
            let (from_files, left) =
                from_files.scaled(ModelFiles::open(&base).unwrap(), scale).unwrap();
            assert!(left.is_empty(), "{left:?}");
            let find = |list: &[(String, Tensor)], key: &str| {
                list.iter().find(|(other, _)| other == key).unwrap().1.shallow_clone()
            };
            for (key, tuned) in &whole {
                let (start, double) = (start(key), |t: &Tensor| t.to_kind(Kind::Double));
                let expected = match scale {
                    0. => start.to_kind(tuned.kind()),
                    1. => tuned.shallow_clone(),
                    _ => (double(&start) + (double(tuned) - double(&start)) * scale)
                        .to_kind(tuned.kind()),
                };
                for (way, found) in
                    [("memory", &in_memory), ("saving", &written), ("files", &from_files.tensors)]
                {
                    let found = find(found, key).to_kind(tuned.kind());
                    assert_eq!(bits(&found), bits(&expected), "{kind:?} {scale} {way}: {key}");
                }
            }
        }
        // Saving changed nothing in memory.
        assert!(tuned.state_dict("default").unwrap().iter().all(|(key, tensor)| {
            bits(tensor) == bits(&whole.iter().find(|(other, _)| other == key).unwrap().1)
        }));
        let error = tuned.save_pretrained_with(&base, &SaveOptions::default().scale(f64::NAN));
        assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidArgument);
        if kind != Kind::Double {
            let far = dir.path().join("far");
            let error = tuned.save_pretrained_with(&far, &SaveOptions::default().scale(1e300));
            assert_eq!(error.unwrap_err().kind(), ErrorKind::NonFinite, "{kind:?}");
            assert!(!far.exists());
        }
    }
}
