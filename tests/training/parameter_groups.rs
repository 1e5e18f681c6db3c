//! Rates and decay of parameter groups, and of norms by their place.

use crate::nets::{self, named_bits};
use ln_tuning::{AdamW, ErrorKind, LnTuningConfig, LnTuningModel, NormPlace, Sgd};
use tch::{nn, Device, Kind, Tensor};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

#[test]
fn parameter_groups_have_learning_rates_of_their_own() {
    let vs = nn::VarStore::new(Device::Cpu);
    let weight = (vs.root() / "norm").var_copy("weight", &Tensor::ones([4], CPU));
    let head = (vs.root() / "head").set_group(1).var_copy("weight", &Tensor::ones([4], CPU));
    let config = LnTuningConfig::default().modules_to_save(["head"]);
    let tuned = LnTuningModel::new(&vs, config).unwrap();
    let mut opt = tuned.optimizer(Sgd::default(), 1.0).unwrap();
    opt.set_lr_group(1, 0.25).unwrap();
    opt.backward_step(&(&weight + &head).sum(Kind::Float)).unwrap();
    assert_eq!(Vec::<f32>::try_from(&weight).unwrap(), [0.0; 4]);
    assert_eq!(Vec::<f32>::try_from(&head).unwrap(), [0.75; 4]);
    assert_eq!(opt.set_lr_group(2, 0.1).unwrap_err().kind(), ErrorKind::InvalidArgument);
}

/// Two layers with a norm before and one behind, of queries, and one at each end, in parameter groups by place or not.
fn placed(grouped: bool) -> nn::VarStore {
    let vs = nn::VarStore::new(Device::Cpu);
    let names = [
        "embed.norm",
        "h.0.ln",
        "h.0.post_ln",
        "h.0.q_norm",
        "h.1.ln",
        "h.1.post_ln",
        "h.1.q_norm",
        "norm",
    ];
    for (number, name) in names.iter().enumerate() {
        let group = match name.rsplit('.').next() {
            _ if !grouped => 0,
            Some("ln") => 1,
            Some("post_ln") => 2,
            _ => 0,
        };
        let path = name.split('.').fold(vs.root(), |path, part| path / part).set_group(group);
        let _ = path.var_copy("weight", &(nets::noise(&[6], number) + 1.));
    }
    vs
}

#[test]
fn rates_and_decay_by_place_do_what_parameter_groups_do() {
    let trained = |grouped: bool| {
        let vs = placed(grouped);
        let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
        let mut opt = tuned.optimizer(AdamW { wd: 0.02, ..AdamW::default() }, 1e-2).unwrap();
        if grouped {
            opt.set_weight_decay_group(1, 0.3).unwrap();
            opt.set_lr_group(2, 0.1).unwrap();
        } else {
            opt.set_weight_decay_norms(NormPlace::Pre, 0.3).unwrap();
            opt.set_lr_norms(NormPlace::Post, 0.1).unwrap();
            let places: Vec<NormPlace> = opt.norm_places().into_iter().collect();
            use NormPlace::*;
            assert_eq!(places, [Pre, Post, Qk, Final, Embeddings]);
        }
        for _ in 0..5 {
            let terms = vs
                .variables()
                .into_iter()
                .map(|(name, w)| (w * nets::noise(&[6], name.len())).sin());
            let loss = terms.fold(Tensor::zeros([6], CPU), |sum, term| sum + term).sum(Kind::Float);
            opt.backward_step(&loss).unwrap();
        }
        named_bits(&tuned.state_dict("default").unwrap())
    };
    assert_eq!(trained(false), trained(true));

    let vs = placed(false);
    let norms = LnTuningConfig::default().target_modules(["ln"]);
    let tuned = LnTuningModel::new(&vs, norms).unwrap();
    let mut opt = tuned.optimizer(AdamW::default(), 1e-2).unwrap();
    let error = opt.set_weight_decay_norms(NormPlace::Qk, 0.1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("'qk'; places in use: pre"), "{error}");
    assert!(opt.set_lr_norms(NormPlace::Pre, -1.).is_err() && opt.lr() == 1e-2);
}
