//! All models have one door: how they are made, loaded, described and run.

mod settings;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;
use std::sync::{Arc, Mutex};

use self::settings::{decoders, encoders, images, of_images_and_texts, seq2seqs};
use crate::{common, nets};
use ln_tuning::models::{
    AnyModel, Clip, ClipText, ClipVision, Decoder, Dinov2, Encoder, Head, ImageTextToText, Inputs,
    Load, Model, ModelConfig, Seq2Seq, Siglip, SiglipVision, ViTForImageClassification,
};
use ln_tuning::pretrained::{self, ModelFiles};
use ln_tuning::{ErrorKind, Result};
use serde_json::{json, Value};
use tch::nn::VarStore;
use tch::{no_grad, Device, Kind, Tensor};

/// All inputs of a model, by the names in messages.
const INPUTS: [&str; 7] = [
    "input_ids",
    "pixel_values",
    "attention_mask",
    "token_type_ids",
    "documents",
    "decoder_input_ids",
    "decoder_attention_mask",
];

struct Batch {
    ids: Tensor,
    mask: Tensor,
    documents: Tensor,
    images: Tensor,
}

impl Batch {
    fn new(kind: Kind) -> Self {
        let ids = Tensor::from_slice2(&[[3_i64, 9, 14, 21, 2], [7, 8, 17, 2, 1]]);
        Batch {
            mask: Tensor::from_slice2(&[[1_i64, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
            documents: Tensor::zeros([2, 5], (Kind::Int64, Device::Cpu)),
            images: nets::noise(&[2, 3, 8, 8], 50).to_kind(kind),
            ids,
        }
    }

    fn given(&self, names: &[&str]) -> Inputs<'_> {
        names.iter().fold(Inputs::default(), |inputs, name| match *name {
            "input_ids" => inputs.input_ids(&self.ids),
            "pixel_values" => inputs.pixel_values(&self.images),
            "attention_mask" => inputs.attention_mask(&self.mask),
            "token_type_ids" => inputs.token_type_ids(&self.documents),
            "documents" => inputs.documents(&self.documents),
            "decoder_input_ids" => inputs.decoder_ids(&self.ids),
            _ => inputs.decoder_attention_mask(&self.mask),
        })
    }
}

/// The properties that all models of one kind share.
struct Door<'d> {
    /// Inputs that they need, and inputs that they may have besides.
    needed: &'static [&'static str],
    taken: &'static [&'static str],
    /// The classifier that labels of your own make; none: there is none.
    classifier: Option<Head>,
    /// True if `AnyModel` knows it.
    any: bool,
    /// The folder for checkpoints.
    dir: &'d Path,
}

/// Logits, or hidden states without a head.
fn outputs<M: Model>(model: &M, inputs: Inputs) -> Result<Tensor> {
    no_grad(|| match model.config().head() {
        Head::None => model.hidden_states(inputs),
        _ => model.logits(inputs),
    })
}

/// Products round otherwise where tensors are aligned otherwise, as they are in a file.
fn assert_close(found: &Tensor, expected: &Tensor, dir: &Path) {
    assert_eq!(found.size(), expected.size(), "{dir:?}");
    let scale = expected.abs().max().double_value(&[]).max(1.);
    let off = (found - expected).abs().max().double_value(&[]) / scale;
    assert!(off < 1e-6, "{dir:?}: {off} off");
}

impl Door<'_> {
    fn check<M: Model>(&self, config: &Value)
    where
        M::Config: PartialEq + Debug,
    {
        let model_type = config["model_type"].as_str().unwrap();
        assert!(M::Config::model_types().contains(&model_type));
        let config = M::Config::from_value(config).unwrap();
        // A configuration is written as it was read.
        assert_eq!(M::Config::from_value(&config.to_value()).unwrap(), config);
        assert_eq!(M::Config::from_json(&config.to_json()).unwrap(), config);

        let vs = VarStore::new(Device::Cpu);
        let model = M::new(&vs.root(), &config).unwrap();
        nets::fill(&vs, 0.2);
        assert_eq!((model.model_type(), model.kind()), (model_type, Kind::Float));
        assert_eq!(model.config(), &config);
        let (batch, whole) = (Batch::new(Kind::Float), [self.needed, self.taken].concat());
        let expected = outputs(&model, batch.given(&whole)).unwrap();
        let dir = self.dir.join(model_type);
        pretrained::save(&vs, &dir, &config.to_json()).unwrap();

        self.loads::<M>(&dir, &vs, &config, &expected);
        self.labels::<M>(&dir);
        self.refuses(&model, &whole);
        if self.any {
            self.any_model(&dir, &expected, &config);
        } else {
            assert!(!AnyModel::model_types().contains(&model_type));
        }
    }

    fn loads<M: Model>(&self, dir: &Path, vs: &VarStore, config: &M::Config, expected: &Tensor)
    where
        M::Config: PartialEq + Debug,
    {
        let (batch, whole) = (Batch::new(Kind::Float), [self.needed, self.taken].concat());
        let on = || Load::on(Device::Cpu);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hear = heard.clone();
        let files = ModelFiles::open(dir).unwrap();
        let files =
            files.with_progress(move |done, total| hear.lock().unwrap().push((done, total)));
        let ways = [
            M::from_pretrained(dir, Device::Cpu, None),
            M::from_files(files, &on()),
            M::from_pretrained_with(dir, &on().head(config.head())),
        ];
        for way in ways {
            let (loaded, model) = way.unwrap();
            assert_eq!(nets::snapshot(&loaded), nets::snapshot(vs), "{dir:?}");
            assert_eq!(model.config(), config, "{dir:?}");
            assert_eq!(model.kind(), Kind::Float);
            let found = outputs(&model, batch.given(&whole)).unwrap();
            assert_close(&found, expected, dir);
        }
        let heard = heard.lock().unwrap();
        assert_eq!(heard.len(), vs.len());
        assert!(heard.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 == pair[1].1));
        assert!(heard.last().is_some_and(|(done, total)| done == total && *total > 0), "{heard:?}");

        let (_, half) = M::from_pretrained(dir, Device::Cpu, Kind::BFloat16).unwrap();
        assert_eq!(half.kind(), Kind::BFloat16);
        let found = outputs(&half, Batch::new(Kind::BFloat16).given(&whole)).unwrap();
        assert_eq!((found.kind(), found.size()), (Kind::BFloat16, expected.size()), "{dir:?}");
    }

    fn labels<M: Model>(&self, dir: &Path) {
        let load = Load::on(Device::Cpu).labels(["one", "two", "three", "four"]);
        let loaded = M::from_pretrained_with(dir, &load);
        let Some(classifier) = self.classifier else {
            let error = loaded.map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{dir:?}: {error}");
            return;
        };
        let (vs, model) = loaded.unwrap();
        let config = model.config();
        assert_eq!(config.labels(), ["one", "two", "three", "four"]);
        assert_eq!(config.head(), classifier, "{dir:?}");
        let batch = Batch::new(Kind::Float);
        let logits = outputs(&model, batch.given(self.needed)).unwrap();
        assert_eq!(logits.size(), [2, 4], "{dir:?}");
        let out = dir.with_file_name(format!("{}_labels", config.model_type()));
        pretrained::save(&vs, &out, &config.to_json()).unwrap();
        let (_, again) = M::from_pretrained(&out, Device::Cpu, None).unwrap();
        assert_eq!(again.config().labels(), config.labels());
        assert_close(&outputs(&again, batch.given(self.needed)).unwrap(), &logits, dir);
    }

    fn refuses<M: Model>(&self, model: &M, whole: &[&str]) {
        let batch = Batch::new(Kind::Float);
        let refused = |names: &[&str]| {
            let error = outputs(model, batch.given(names)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{names:?}: {error}");
            error.to_string()
        };
        for name in INPUTS.iter().filter(|name| !whole.contains(name)) {
            let error = refused(&[whole, &[name]].concat());
            assert!(error.contains(name), "{}, {name}: {error}", model.model_type());
        }
        for name in self.needed {
            let others: Vec<&str> = whole.iter().copied().filter(|other| other != name).collect();
            let error = refused(&others);
            assert!(error.contains(name), "{}, no {name}: {error}", model.model_type());
        }
    }

    fn any_model(&self, dir: &Path, expected: &Tensor, config: &impl ModelConfig) {
        let (vs, model) = AnyModel::from_pretrained(dir, Device::Cpu, None).unwrap();
        assert!(!vs.is_empty());
        assert_eq!((model.model_type(), model.kind()), (config.model_type(), Kind::Float));
        assert_eq!(model.config(), config.to_value());
        let (batch, whole) = (Batch::new(Kind::Float), [self.needed, self.taken].concat());
        let inputs = batch.given(&whole);
        let found = no_grad(|| match config.head() {
            Head::None => model.hidden_states(inputs),
            _ => model.logits(inputs),
        });
        assert_close(&found.unwrap(), expected, dir);
    }
}

/// The class is then that of an encoder-decoder, by which the directory is opened again.
fn a_base_models_files_with_a_tied_head(dir: &Path) {
    let (vs, model) = Seq2Seq::from_pretrained(dir, Device::Cpu, None).unwrap();
    let batch = Batch::new(Kind::Float);
    let logits = |model: &Seq2Seq| {
        no_grad(|| model.logits(batch.given(&["input_ids", "decoder_input_ids"]))).unwrap()
    };
    let mut config = model.config().to_value();
    config["architectures"] = json!(["T5Model"]);
    let base = dir.with_file_name("t5_base");
    pretrained::save(&vs, &base, &config.to_string()).unwrap();
    let refused = Seq2Seq::from_pretrained(&base, Device::Cpu, None).unwrap_err().to_string();
    assert!(refused.contains("'T5Model', expected one of T5ForConditionalGeneration"), "{refused}");
    let load = Load::on(Device::Cpu).head(Head::LanguageModel);
    let (vs, again) = Seq2Seq::from_pretrained_with(&base, &load).unwrap();
    assert_close(&logits(&again), &logits(&model), &base);
    pretrained::save(&vs, &base, &again.config().to_json()).unwrap();
    let (_, again) = Seq2Seq::from_pretrained(&base, Device::Cpu, None).unwrap();
    assert_eq!(again.config(), model.config());
}

#[test]
fn every_model_is_made_loaded_described_and_run_in_one_way() {
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let door = |needed, taken, classifier, any| Door { needed, taken, classifier, any, dir };
    let (text, image) = (Head::SequenceClassification, Head::ImageClassification);
    // Documents stand in the place of the mask.
    let of_decoders = door(&["input_ids"], &["documents"], Some(text), true);
    let decoders = decoders();
    decoders.iter().for_each(|config| of_decoders.check::<Decoder>(config));

    let encoders = encoders();
    for config in &encoders {
        let taken: &[&str] = match config["model_type"].as_str() {
            Some("distilbert") => &["attention_mask"],
            _ => &["attention_mask", "token_type_ids"],
        };
        door(&["input_ids"], taken, Some(text), true).check::<Encoder>(config);
    }

    let masks = &["attention_mask", "decoder_attention_mask"];
    let of_seq2seqs = door(&["input_ids", "decoder_input_ids"], masks, None, true);
    let seq2seqs = seq2seqs();
    seq2seqs.iter().for_each(|config| of_seq2seqs.check::<Seq2Seq>(config));

    a_base_models_files_with_a_tied_head(&dir.join("t5"));

    let of_images = door(&["pixel_values"], &[], Some(image), true);
    let (vit, dinov2) =
        (images("vit", "ViTForImageClassification"), images("dinov2", "Dinov2Model"));
    of_images.check::<ViTForImageClassification>(&vit);
    of_images.check::<Dinov2>(&dinov2);

    let mut texts = images("clip_text_model", "CLIPTextModel");
    texts["eos_token_id"] = json!(2);
    let pixels = images("clip_vision_model", "CLIPVisionModel");
    let clip = json!({
        "model_type": "clip", "architectures": ["CLIPModel"], "text_config": texts, "vision_config": pixels,
        "projection_dim": 8,
    });
    door(&["input_ids"], &["attention_mask"], None, true).check::<Clip>(&clip);
    door(&["input_ids"], &["attention_mask"], None, false).check::<ClipText>(&texts);
    door(&["pixel_values"], &[], None, true).check::<ClipVision>(&pixels);
    let seen = images("siglip_vision_model", "SiglipVisionModel");
    let siglip = json!({
        "model_type": "siglip", "architectures": ["SiglipModel"], "vision_config": seen,
        "text_config": images("siglip_text_model", "SiglipTextModel"),
    });
    door(&["input_ids"], &["attention_mask"], None, true).check::<Siglip>(&siglip);
    door(&["pixel_values"], &[], None, true).check::<SiglipVision>(&seen);

    let seeing = of_images_and_texts();
    for config in &seeing {
        let taken: &[&str] = match config["model_type"].as_str() {
            Some("llava_next") => &["documents"],
            Some("qwen2_5_vl" | "qwen3_vl") => &["attention_mask"],
            _ => &["documents", "pixel_values"],
        };
        door(&["input_ids"], taken, None, true).check::<ImageTextToText>(config);
    }

    let towers = vec![vit, dinov2, clip, pixels, siglip, seen];
    let known = [decoders, encoders, seq2seqs, towers, seeing].concat();
    let mut types: Vec<&str> = known.iter().map(|c| c["model_type"].as_str().unwrap()).collect();
    types.sort_unstable();
    assert_eq!(types, AnyModel::model_types());

    // transformers reads what was written.
    let printed = common::run_python("door.py", &[dir.to_str().unwrap()]);
    let read: BTreeMap<String, (String, Option<String>, Vec<String>)> =
        serde_json::from_str(&printed).unwrap();
    for config in known.iter().chain([&texts]) {
        let (model_type, class) = (&config["model_type"], &config["architectures"][0]);
        let (theirs, their_class, _) = &read[model_type.as_str().unwrap()];
        assert_eq!((&json!(theirs), &json!(their_class)), (model_type, class));
    }
    let labelled = read.iter().filter(|(name, _)| name.ends_with("_labels"));
    let mut without_class = Vec::new();
    let mut count = 0;
    for (name, (_, class, labels)) in labelled {
        assert_eq!(labels[..], ["one", "two", "three", "four"], "{name}");
        match class {
            Some(class) => assert!(class.ends_with("Classification"), "{name}: {class}"),
            None => without_class.push(name.as_str()),
        }
        count += 1;
    }
    // All but encoder-decoders, CLIP, SigLIP, and models of images and texts.
    assert_eq!(count, types.len() - 3 - 4 - 7);
    assert_eq!(without_class, ["cohere_labels", "granite_labels"]);
}
