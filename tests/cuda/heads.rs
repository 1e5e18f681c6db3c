//! New heads on the second of two devices: made there, trained with the norms, saved, and loaded.

use ln_tuning::models::{AnyModel, Head, Inputs, Load};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::recompute::Recompute;
use ln_tuning::{AdamW, LnTuningConfig, LnTuningModel};
use tch::{Device, Kind, Tensor};

use crate::checkpoints::checkpoints;
use crate::counting::{self, Gpu};

const DEVICE: Device = Device::Cuda(1);

fn a_new_head_trains(case: &str, head: Head, kind: Kind, module: &str) -> ln_tuning::Result<()> {
    let dir = checkpoints().join(case);
    let load = Load::on(DEVICE).kind(kind).head(head).labels(["bad", "good", "neither"]);
    let (vs, model) = AnyModel::from_files(ModelFiles::open(dir)?, &load)?;
    for (name, variable) in vs.variables() {
        assert_eq!((variable.device(), variable.kind()), (DEVICE, kind), "{case}: {name}");
    }
    let config =
        LnTuningConfig { modules_to_save: Some(vec![module.into()]), ..Default::default() };
    let tuned = LnTuningModel::new(&vs, config)?;
    let mut optimizer = tuned.optimizer(AdamW::default(), 1e-3)?;
    let ids = Tensor::arange(18, (Kind::Int64, DEVICE)).view([2, 9]);
    let size = model.config()["image_size"].as_i64().unwrap_or(1);
    let images = Tensor::zeros([2, 3, size, size], (kind, DEVICE));
    let mask = Tensor::from_slice2(&[[0i64, 0, 1, 1, 1, 1, 1, 1, 1], [1; 9]]).to_device(DEVICE);
    let inputs = match head {
        Head::ImageClassification => Inputs::images(&images),
        _ => Inputs::new(&ids).attention_mask(&mask),
    };
    let labels = Tensor::from_slice(&[0i64, 2]).to_device(DEVICE);
    let loss = |logits: Tensor| {
        assert_eq!(logits.device(), DEVICE, "{case}");
        // The first token's, where each has its own.
        let logits = if logits.dim() == 3 { logits.select(1, 0) } else { logits };
        assert_eq!(logits.size(), [2, 3], "{case}");
        logits.to_kind(Kind::Float).cross_entropy_for_logits(&labels)
    };
    optimizer.backward_step_clip_norm(&loss(model.logits(inputs.train(true))?), 1.)?;
    let recompute = Recompute::default();
    let again = optimizer.backward_recompute(&recompute, |tape| {
        Ok(loss(model.logits_with(inputs.train(true), tape)?))
    })?;
    assert_eq!(again.device(), DEVICE, "{case}");
    optimizer.step()?;
    for (name, gradient) in optimizer.gradients()? {
        assert!(gradient.is_none_or(|gradient| gradient.device() == DEVICE), "{case}: {name}");
    }
    let saved = tempfile::tempdir().unwrap();
    tuned.save_pretrained(saved.path())?;
    tuned.unload()?;
    LnTuningModel::from_pretrained(&vs, saved.path())?;
    Ok(())
}

#[test]
fn classifiers_of_texts_tokens_and_images_train_on_the_second_device() {
    checkpoints();
    Gpu { sm: 80, devices: 2, fill: Some(0), ..Gpu::default() }.run(|| {
        ln_tuning::device::best_device();
        tch::Cuda::set_user_enabled_cudnn(false);
        let (texts, tokens) = (Head::SequenceClassification, Head::TokenClassification);
        for (case, head, module) in [
            ("decoders/llama", texts, "score"),
            ("decoders/gpt2", texts, "score"),
            ("decoders/gemma3", texts, "score"),
            ("decoders/opt", texts, "score"),
            ("decoders/bloom", texts, "score"),
            ("encoders/00_bert_base", texts, "classifier"),
            ("encoders/04_roberta_base", texts, "classifier"),
            ("encoders/12_distilbert_base", texts, "classifier"),
            ("encoders/00_bert_base", tokens, "classifier"),
            ("encoders/12_distilbert_base", tokens, "classifier"),
            ("vision/dinov2", Head::ImageClassification, "classifier"),
        ] {
            for kind in [Kind::BFloat16, Kind::Half, Kind::Float] {
                let done = a_new_head_trains(case, head, kind, module);
                done.unwrap_or_else(|error| panic!("{case} in {kind:?}: {error}"));
            }
        }
        counting::only_device(1);
    });
}
