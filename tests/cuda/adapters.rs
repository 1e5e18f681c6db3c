//! Adapters and optimisers on the second of two devices: all that they make is there, and nothing on the first.

use ln_tuning::models::{Decoder, Model};
use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel, LoadOptions, Optimizer};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::checkpoints::checkpoints;
use crate::counting::{self, Gpu};

const DEVICE: Device = Device::Cuda(1);

fn two_devices() -> Gpu {
    Gpu { devices: 2, zeros: true, ..Gpu::default() }
}

fn nothing_on_the_first_device() {
    let devices = counting::counts().devices;
    assert_eq!((devices[0].peak, devices[0].blocks), (0, 0), "memory of cuda:0 for cuda:1");
    assert!(devices[1].peak > 0);
}

/// Every variable is where the model is, in its kind.
fn all_stay(vs: &VarStore, kind: Kind, after: &str) {
    for (name, variable) in vs.variables() {
        assert_eq!((variable.device(), variable.kind()), (DEVICE, kind), "{name} after {after}");
    }
}

#[test]
fn adapters_stay_on_the_device_of_their_model() {
    let dir = checkpoints().join("decoders/llama");
    two_devices().run(|| {
        for kind in [Kind::BFloat16, Kind::Half, Kind::Float] {
            let (vs, model) = Decoder::from_pretrained(&dir, DEVICE, kind).unwrap();
            let mut tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
            all_stay(&vs, kind, "attaching");
            tuned.add_adapter("second", LnTuningConfig::default()).unwrap();
            tuned.set_adapter("second").unwrap();
            all_stay(&vs, kind, "switching");
            tuned.disable().unwrap();
            all_stay(&vs, kind, "disabling");
            tuned.enable().unwrap();
            for (name, tensor) in tuned.state_dict("second").unwrap() {
                assert_eq!(tensor.device(), DEVICE, "{name}");
            }
            tuned.merge_adapter("second").unwrap();
            all_stay(&vs, kind, "merging");
            tuned.unmerge_adapter().unwrap();
            all_stay(&vs, kind, "taking the merge back");

            let saved = tempfile::tempdir().unwrap();
            tuned.save_pretrained(saved.path()).unwrap();
            tuned.load_adapter(saved.path(), "third", &LoadOptions::default()).unwrap();
            tuned.set_adapter("third").unwrap();
            all_stay(&vs, kind, "loading");
            tuned.delete_adapter("second").unwrap();
            let ids = Tensor::ones([1, 4], (Kind::Int64, DEVICE));
            assert_eq!(model.logits(&ids).unwrap().device(), DEVICE);
            tuned.unload().unwrap();
            all_stay(&vs, kind, "unloading");

            let again = LnTuningModel::from_pretrained(&vs, saved.path()).unwrap();
            again.merge_and_unload().unwrap();
            all_stay(&vs, kind, "loading and merging");
        }
        nothing_on_the_first_device();
    });
}

#[test]
fn the_state_of_an_optimiser_moves_between_devices() {
    let dir = checkpoints().join("decoders/llama");
    two_devices().run(|| {
        let trained = |device: Device| {
            let (vs, model) = Decoder::from_pretrained(&dir, device, Kind::BFloat16).unwrap();
            let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
            let mut optimizer = tuned.optimizer(AdamW::default().amsgrad(true), 1e-3).unwrap();
            let ids = Tensor::ones([1, 4], (Kind::Int64, device));
            let step = |optimizer: &mut Optimizer| {
                let loss = model.logits(&ids).unwrap().sum(Kind::Float);
                optimizer.backward_step_clip_norm(&loss, 1.).unwrap();
            };
            step(&mut optimizer);
            (optimizer, move |optimizer: &mut Optimizer| {
                step(optimizer);
                let gradients = optimizer.gradients().unwrap();
                let gradients = gradients.into_iter().filter_map(|(_, gradient)| gradient);
                gradients.for_each(|gradient| assert_eq!(gradient.device(), device));
                drop((&vs, &tuned));
            })
        };
        let (mut on_host, step_on_host) = trained(Device::Cpu);
        let (mut on_device, step_on_device) = trained(DEVICE);
        let (host, device) = (on_host.state_dict().unwrap(), on_device.state_dict().unwrap());
        assert!(device
            .iter()
            .filter(|(_, state)| state.numel() > 1)
            .all(|(_, s)| s.device() == DEVICE));
        on_host.load_state_dict(&device).unwrap();
        on_device.load_state_dict(&host).unwrap();
        step_on_host(&mut on_host);
        step_on_device(&mut on_device);

        let file = tempfile::tempdir().unwrap();
        let file = file.path().join("optimizer.safetensors");
        on_device.save(&file).unwrap();
        on_host.load(&file).unwrap();
        on_host.save(&file).unwrap();
        on_device.load(&file).unwrap();
        step_on_device(&mut on_device);
        nothing_on_the_first_device();
    });
}
