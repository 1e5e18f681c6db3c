//! Adapters and optimisers on the second of two devices: all that they make is there, and nothing on the first.

use ln_tuning::models::{Decoder, Model};
use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel, LoadOptions, Optimizer};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::checkpoints::checkpoints;
use crate::counting::{self, Gpu};

const DEVICE: Device = Device::Cuda(1);

fn two_devices() -> Gpu {
    Gpu { devices: 2, fill: Some(0), ..Gpu::default() }
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
            tuned.with_disabled(|| all_stay(&vs, kind, "disabling")).unwrap();
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
        counting::only_device(1);
    });
}

/// A model with its adapter and optimiser, which have made a step.
struct Trained {
    device: Device,
    model: Decoder,
    optimizer: Optimizer,
    _rest: (VarStore, LnTuningModel),
}

impl Trained {
    fn on(device: Device) -> Trained {
        let dir = checkpoints().join("decoders/llama");
        let (vs, model) = Decoder::from_pretrained(dir, device, Kind::BFloat16).unwrap();
        let tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
        let optimizer = tuned.optimizer(AdamW::default().amsgrad(true), 1e-3).unwrap();
        let mut trained = Trained { device, model, optimizer, _rest: (vs, tuned) };
        trained.step();
        trained
    }

    fn step(&mut self) {
        let ids = Tensor::ones([1, 4], (Kind::Int64, self.device));
        let loss = self.model.logits(&ids).unwrap().sum(Kind::Float);
        self.optimizer.backward_step_clip_norm(&loss, 1.).unwrap();
        for (name, gradient) in self.optimizer.gradients().unwrap() {
            assert_eq!(gradient.expect("a gradient").device(), self.device, "{name}");
        }
    }
}

#[test]
fn the_state_of_an_optimiser_moves_between_devices() {
    checkpoints();
    two_devices().run(|| {
        let (mut host, mut device) = (Trained::on(Device::Cpu), Trained::on(DEVICE));
        let of_host = host.optimizer.state_dict().unwrap();
        let of_device = device.optimizer.state_dict().unwrap();
        for (name, state) in of_device.iter().filter(|(_, state)| state.dim() > 0) {
            assert_eq!(state.device(), DEVICE, "{name}");
        }
        host.optimizer.load_state_dict(&of_device).unwrap();
        device.optimizer.load_state_dict(&of_host).unwrap();
        host.step();
        device.step();

        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("optimizer.safetensors");
        device.optimizer.save(&file).unwrap();
        host.optimizer.load(&file).unwrap();
        host.optimizer.save(&file).unwrap();
        device.optimizer.load(&file).unwrap();
        device.step();
        counting::only_device(1);
    });
}
