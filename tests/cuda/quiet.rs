//! Standard error belongs to the user.

use ln_tuning::loss::LinearCrossEntropy;
use ln_tuning::models::{Decoder, GenerateOptions, Model};
use ln_tuning::{device::best_device, AdamW, LnTuningConfig, LnTuningModel, LoadOptions};
use tch::{no_grad, Device, Kind, Tensor};

use crate::checkpoints::checkpoints;
use crate::counting::Gpu;

#[test]
fn training_generating_saving_and_loading_write_nothing_to_standard_error() {
    let dir = checkpoints().join("decoders/llama");
    Gpu { fill: Some(0), ..Gpu::default() }.run(|| {
        let device = best_device();
        let (vs, model) = Decoder::from_pretrained(&dir, device, Kind::BFloat16).unwrap();
        let mut tuned = LnTuningModel::new(&vs, LnTuningConfig::default()).unwrap();
        let mut optimizer = tuned.optimizer(AdamW::default(), 1e-3).unwrap();
        let labels = Tensor::arange(18, (Kind::Int64, Device::Cpu)).view([2, 9]);
        let ids = labels.to_device(device);
        for _ in 0..2 {
            let loss = model.loss(&ids, &labels, &LinearCrossEntropy::default()).unwrap();
            optimizer.backward_step_clip_norm(&loss, 1.).unwrap();
        }
        let options = GenerateOptions::default().max_new_tokens(3).stop_tokens([]);
        assert_eq!(no_grad(|| model.generate(&ids, &options)).unwrap().size(), [2, 3]);

        let saved = tempfile::tempdir().unwrap();
        tuned.save_pretrained(saved.path()).unwrap();
        tuned.load_adapter(saved.path(), "again", &LoadOptions::default()).unwrap();
        tuned.set_adapter("again").unwrap();
        optimizer.save(saved.path().join("optimizer.safetensors")).unwrap();
        ln_tuning::pretrained::save(&vs, saved.path().join("base"), "{}").unwrap();
    });
}
