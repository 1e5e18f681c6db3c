//! Block checkpointing of every model: values and gradients of the plain run, without the graphs of its blocks.

use super::random::alone;
use crate::nets;
use ln_tuning::models::{
    Clip, Decoder, Dinov2, Encoder, Head, Inputs, Model, ModelConfig, Seq2Seq, Siglip,
    TowerClassifier, ViTForImageClassification,
};
use ln_tuning::recompute::{Blocks, Recompute, Tape};
use ln_tuning::Result;
use serde_json::{json, Value};
use tch::nn::VarStore;
use tch::{no_grad, Device, Kind, Tensor};

/// A model, the batch for it and the blocks that this batch runs through.
struct Case<M> {
    name: String,
    vs: VarStore,
    model: M,
    ids: Tensor,
    mask: Tensor,
    images: Tensor,
    /// Parts of names: the blocks of each stack, in the order in which the stacks are run.
    stacks: &'static [&'static str],
}

/// Blocks of one stack.
const LAYERS: usize = 3;

impl<M: Model> Case<M> {
    fn new(config: &Value, head: Head, stacks: &'static [&'static str]) -> Self {
        let name = format!("{} {head:?}", config["model_type"]);
        let config = M::Config::from_value(config).unwrap().with_head(head).unwrap();
        let mut vs = VarStore::new(Device::Cpu);
        let model = M::new(&vs.root(), &config).unwrap();
        nets::fill(&vs, 0.2);
        // Gradients are compared with differences of losses, which are too small for f32.
        vs.double();
        let ids = Tensor::from_slice2(&[[3_i64, 9, 14, 21, 30, 2], [7, 8, 17, 12, 2, 1]]);
        let mask = Tensor::from_slice2(&[[1_i64, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]);
        let images = nets::noise(&[2, 3, 8, 8], 50).to_kind(Kind::Double);
        Case { name, vs, model, ids, mask, images, stacks }
    }

    fn texts(&self) -> Inputs<'_> {
        Inputs::new(&self.ids).attention_mask(&self.mask)
    }

    fn pixels(&self) -> Inputs<'_> {
        Inputs::images(&self.images)
    }

    fn pairs(&self) -> Inputs<'_> {
        self.texts().decoder_ids(&self.ids)
    }

    /// The number of a variable's block among all that are run.
    fn block(&self, name: &str) -> Option<usize> {
        // It stands in the first block and is used by all.
        if name.contains("relative_attention_bias") {
            return None;
        }
        let stack = self.stacks.iter().position(|stack| name.contains(stack))?;
        let (_, below) = name.split_once(self.stacks[stack])?;
        Some(stack * LAYERS + below.split('.').next()?.parse::<usize>().unwrap())
    }

    /// The whole of the test. `run` gives what the loss is made of.
    fn check(&self, run: impl for<'m> Fn(&'m Self, bool, &mut Tape<'m>) -> Result<Tensor>) {
        let name = &self.name;
        let mut variables: Vec<(String, Tensor)> = self.vs.variables().into_iter().collect();
        variables.retain(|(_, tensor)| tensor.requires_grad());
        variables.sort_by(|a, b| a.0.cmp(&b.0));
        let tensors: Vec<Tensor> = variables.iter().map(|(_, t)| t.shallow_clone()).collect();
        let of = |output: Tensor| {
            let weights = nets::noise(&output.size(), 99).to_kind(Kind::Double);
            (output * weights).sum(Kind::Double)
        };
        let gradients = |loss: &Tensor| {
            let inputs: Vec<&Tensor> = tensors.iter().collect();
            Tensor::f_run_backward(&[loss], &inputs, true, false).unwrap()
        };

        let plain = of(run(self, false, &mut Tape::off()).unwrap());
        let expected = gradients(&plain);
        let in_blocks = |place: usize| self.block(&variables[place].0);
        for (place, (variable, _)) in variables.iter().enumerate() {
            assert!(in_blocks(place).is_none() || expected[place].defined(), "{name}: {variable}");
        }
        for blocks in [Blocks::All, Blocks::EveryNth(2), Blocks::First(1)] {
            let found = Recompute::new(blocks).gradients(&tensors, |tape| {
                let loss = of(run(self, false, tape)?);
                // The graphs of blocks that are run again are gone, and with them what lies below.
                for (place, gradient) in gradients(&loss).iter().enumerate() {
                    let reached = match (blocks, in_blocks(place)) {
                        (Blocks::All, Some(_)) | (Blocks::First(1), Some(0)) => false,
                        (Blocks::First(1), Some(_)) => true,
                        _ => continue,
                    };
                    let variable = &variables[place].0;
                    assert_eq!(gradient.defined(), reached, "{name} {blocks:?}: {variable}");
                }
                Ok(loss)
            });
            let (value, found) = found.unwrap();
            assert_eq!(nets::bits(&value), nets::bits(&plain), "{name} {blocks:?}");
            for (((variable, _), found), expected) in variables.iter().zip(&found).zip(&expected) {
                assert_eq!(found.defined(), expected.defined(), "{name} {blocks:?}: {variable}");
                if found.defined() {
                    // Sums over blocks are made in another order.
                    let scale = expected.abs().max().double_value(&[]).max(1e-3);
                    let off = (found - expected).abs().max().double_value(&[]) / scale;
                    assert!(off < 1e-12, "{name} {blocks:?}: {variable} is {off} off");
                }
            }
        }
        // With dropout: along a direction the loss changes as the gradients say, if both runs of a block drop the same.
        let directions: Vec<Tensor> = tensors
            .iter()
            .enumerate()
            .map(|(seed, t)| nets::noise(&t.size(), 200 + seed).to_kind(Kind::Double))
            .collect();
        let shift = |by: f64| {
            no_grad(|| {
                for (tensor, direction) in tensors.iter().zip(&directions) {
                    let _ = tensor.shallow_clone().g_add_(&(direction * by));
                }
            })
        };
        for blocks in [Blocks::All, Blocks::EveryNth(2)] {
            let recompute = Recompute::new(blocks).preserve_rng_state(true);
            let dropped = || {
                tch::manual_seed(5);
                recompute.gradients(&tensors, |tape| Ok(of(run(self, true, tape)?))).unwrap()
            };
            let (value, found) = dropped();
            let change = (&value - &plain).abs().double_value(&[]);
            assert!(change > 1e-3, "{name}: nothing is dropped");
            let slopes = found.iter().zip(&directions).filter(|(found, _)| found.defined());
            let slope: f64 = slopes.map(|(g, d)| (g * d).sum(Kind::Double).double_value(&[])).sum();
            const STEP: f64 = 1e-6;
            shift(STEP);
            let above = dropped().0.double_value(&[]);
            shift(-2. * STEP);
            let below = dropped().0.double_value(&[]);
            shift(STEP);
            let measured = (above - below) / (2. * STEP);
            let off = (slope - measured).abs() / measured.abs().max(1.);
            assert!(off < 1e-5, "{name} {blocks:?}: gradients say {slope}, losses {measured}");
        }
    }
}

fn bert() -> Value {
    json!({
        "model_type": "bert", "vocab_size": 40, "hidden_size": 12, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 10,
    })
}

#[test]
fn encoders_with_each_head_run_their_blocks_again() {
    let _alone = alone();
    let stacks = &["encoder.layer."];
    Case::<Encoder>::new(&bert(), Head::None, stacks).check(|case, train, tape| {
        // Padding's own rows are part of it too.
        case.model.hidden_states_with(case.texts().train(train), tape)
    });
    for head in [Head::MaskedLm, Head::SequenceClassification, Head::TokenClassification] {
        Case::<Encoder>::new(&bert(), head, stacks)
            .check(|case, train, tape| case.model.logits_with(case.texts().train(train), tape));
    }
}

fn image_model(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "hidden_size": 12, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "intermediate_size": 16, "image_size": 8, "patch_size": 4, "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.2,
    })
}

#[test]
fn vision_models_run_their_blocks_again() {
    let _alone = alone();
    let vit = Case::<ViTForImageClassification>::new(
        &image_model("vit"),
        Head::ImageClassification,
        &["layers."],
    );
    vit.check(|case, train, tape| case.model.logits_with(case.pixels().train(train), tape));
    for head in [Head::None, Head::ImageClassification] {
        let dinov2 = Case::<Dinov2>::new(&image_model("dinov2"), head, &["layer."]);
        dinov2.check(|case, train, tape| {
            let inputs = case.pixels().train(train);
            match case.model.config().head() {
                Head::None => case.model.hidden_states_with(inputs, tape),
                _ => case.model.logits_with(inputs, tape),
            }
        });
    }
}

#[test]
fn both_towers_of_a_clip_and_of_a_siglip_run_their_blocks_again() {
    let _alone = alone();
    let mut text = bert();
    text["attention_dropout"] = json!(0.2);
    text["eos_token_id"] = json!(2);
    let mut vision = image_model("clip_vision_model");
    vision["attention_dropout"] = json!(0.2);
    let config = |model_type: &str| {
        json!({
            "model_type": model_type, "text_config": text, "vision_config": vision, "projection_dim": 8,
        })
    };
    let [texts, images]: [&[&str]; 2] =
        [&["text_model.encoder.layers."], &["vision_model.encoder.layers."]];
    let both = &["vision_model.encoder.layers.", "text_model.encoder.layers."];
    let clip = config("clip");
    Case::<Clip>::new(&clip, Head::None, texts)
        .check(|case, train, tape| case.model.text_features_with(case.texts().train(train), tape));
    Case::<Clip>::new(&clip, Head::None, images).check(|case, train, tape| {
        case.model.image_features_with(case.pixels().train(train), tape)
    });
    Case::<Clip>::new(&clip, Head::None, both).check(|case, train, tape| {
        case.model.logits_with(case.texts().pixel_values(&case.images).train(train), tape)
    });
    let siglip = config("siglip");
    Case::<Siglip>::new(&siglip, Head::None, both).check(|case, train, tape| {
        case.model.logits_with(case.texts().pixel_values(&case.images).train(train), tape)
    });
    for config in [clip, siglip] {
        Case::<TowerClassifier>::new(&config, Head::ImageClassification, images)
            .check(|case, train, tape| case.model.logits_with(case.pixels().train(train), tape));
    }
}

#[test]
fn encoder_decoders_run_the_blocks_of_both_stacks_again() {
    let _alone = alone();
    let t5 = json!({
        "model_type": "t5", "vocab_size": 40, "d_model": 12, "d_kv": 6, "d_ff": 16, "num_layers": LAYERS, "num_heads": 2,
        "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 8,
    });
    let bart = json!({
        "model_type": "bart", "vocab_size": 40, "d_model": 12, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
        "max_position_embeddings": 10, "attention_dropout": 0.1, "activation_dropout": 0.1, "encoder_layerdrop": 0.3,
        "pad_token_id": 0,
    });
    let stacks: [&[&str]; 2] =
        [&["encoder.block.", "decoder.block."], &["encoder.layers.", "decoder.layers."]];
    for (config, stacks) in [t5, bart].iter().zip(stacks) {
        let seq2seq = Case::<Seq2Seq>::new(config, Head::LanguageModel, stacks);
        seq2seq.check(|case, train, tape| case.model.logits_with(case.pairs().train(train), tape));
    }
}

#[test]
fn decoders_with_each_head_run_their_blocks_again() {
    let _alone = alone();
    let llama = json!({
        "model_type": "llama", "vocab_size": 40, "hidden_size": 12, "intermediate_size": 16,
        "num_hidden_layers": LAYERS, "num_attention_heads": 2, "attention_dropout": 0.1, "pad_token_id": 1,
    });
    let gpt2 = json!({
        "model_type": "gpt2", "vocab_size": 40, "n_embd": 12, "n_layer": LAYERS, "n_head": 2, "n_positions": 10,
        "pad_token_id": 1,
    });
    let stacks: [&[&str]; 2] = [&["layers."], &["h."]];
    for (config, stacks) in [llama, gpt2].iter().zip(stacks) {
        Case::<Decoder>::new(config, Head::None, stacks).check(|case, train, tape| {
            case.model.hidden_states_with(case.texts().train(train), tape)
        });
        for head in [Head::LanguageModel, Head::SequenceClassification] {
            Case::<Decoder>::new(config, head, stacks)
                .check(|case, train, tape| case.model.logits_with(case.texts().train(train), tape));
        }
    }
}
