//! The language model that is trained: opened from its files, and its loss.

use anyhow::{ensure, Result};
use ln_tuning::loss::{LinearCrossEntropy, Reduction};
use ln_tuning::models::{
    Decoder, DecoderConfig, GenerateOptions, Head, ImageTextToText, ImageTextToTextConfig, Inputs,
    Load, Model, ModelConfig, Seq2SeqConfig,
};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::recompute::Tape;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::progress;
use crate::train::order::step_seed;
use crate::train::settings::Settings;

pub struct LanguageModel {
    form: Form,
    /// The variables of the tower for pictures.
    tower: Vec<Tensor>,
    /// The tower drops some of its activations while it trains.
    drops: bool,
}

enum Form {
    Text(Box<Decoder>),
    Seeing(Box<ImageTextToText>),
}

impl LanguageModel {
    pub fn open(
        files: ModelFiles,
        settings: &Settings,
        device: Device,
    ) -> Result<(VarStore, Self)> {
        ensure!(
            !reads_first(&files),
            "'{}' is an encoder-decoder ({}), which 'train' does not take: give a model that goes on with a text, or \
             train it with the library's `Seq2Seq`",
            settings.model.display(),
            files.model_type().unwrap_or_default()
        );
        let (files, bar) = progress::loading(files)?;
        tch::manual_seed(step_seed(settings.seed, u64::MAX, 0));
        let load = Load::on(device)
            .kind(settings.kind.on(device))
            .frozen(settings.base)
            .head(Head::LanguageModel);
        let loaded = Self::load(files, &load)?;
        bar.finish_and_clear();
        Ok(loaded)
    }

    pub fn load(files: ModelFiles, load: &Load) -> Result<(VarStore, Self)> {
        if !sees(&files) {
            let (vs, decoder) = Decoder::from_files(files, load)?;
            let form = Form::Text(Box::new(decoder));
            return Ok((vs, LanguageModel { form, tower: Vec::new(), drops: false }));
        }
        let (vs, model) = ImageTextToText::from_files(files, load)?;
        let in_tower = |name: &String| TOWERS.iter().any(|tower| name.starts_with(tower));
        let tower = vs.variables().into_iter().filter(|(name, _)| in_tower(name));
        let tower = tower.map(|(_, variable)| variable).collect();
        let config = model.config().to_value();
        let dropout = |key: &&str| config["vision_config"][*key].as_f64().unwrap_or(0.) > 0.;
        let drops = DROPOUTS.iter().any(dropout);
        Ok((vs, LanguageModel { form: Form::Seeing(Box::new(model)), tower, drops }))
    }

    fn decoder(&self) -> &Decoder {
        match &self.form {
            Form::Text(decoder) => decoder,
            Form::Seeing(model) => model.decoder(),
        }
    }

    pub fn config(&self) -> &DecoderConfig {
        self.decoder().config()
    }

    /// That of the weights.
    pub fn kind(&self) -> Kind {
        self.decoder().kind()
    }

    /// Refuses ids that the model has no embedding for.
    pub fn check_ids(&self, largest: Option<u32>) -> Result<()> {
        let vocabulary = self.config().vocab_size();
        let id = largest.map_or(-1, i64::from);
        ensure!(
            id < vocabulary,
            "the tokenizer gives the id {id}, and the model has a vocabulary of {vocabulary}"
        );
        Ok(())
    }

    /// True if the weights come when they are needed: best once for all batches of a step.
    pub fn is_streamed(&self) -> bool {
        self.decoder().is_streamed()
    }

    /// True if the tower makes the same of a picture each time: it neither trains nor, while others do, drops anything.
    pub fn tower_is_fixed(&self, train: bool) -> bool {
        !(train && self.drops || self.tower.iter().any(Tensor::requires_grad))
    }

    /// As the library's [`ImageTextToText::image_features`]; `grid` is that of a picture in patches.
    pub fn image_features(
        &self,
        pixels: &Tensor,
        grid: Option<&Tensor>,
    ) -> ln_tuning::Result<Tensor> {
        match &self.form {
            Form::Seeing(model) => {
                model.image_features(Inputs::images(pixels).image_grid_thw(grid))
            }
            // Its loader gives no pictures.
            Form::Text(_) => Ok(pixels.shallow_clone()),
        }
    }

    /// [`loss`](Self::loss) of several batches with their labels.
    pub fn losses<'m>(
        &'m self,
        batches: &[(Inputs, &Tensor)],
        reduction: Reduction,
        tape: &mut Tape<'m>,
    ) -> ln_tuning::Result<Vec<Tensor>> {
        let loss = LinearCrossEntropy::default().reduction(reduction);
        match &self.form {
            Form::Text(model) => model.losses_with(batches, &loss, tape),
            Form::Seeing(model) => model.losses_with(batches, &loss, tape),
        }
    }

    /// The loss of next tokens. Inputs are on the model's device; labels stay on the CPU, so that what does not count
    /// is left out.
    pub fn loss<'m>(
        &'m self,
        inputs: Inputs,
        labels: &Tensor,
        reduction: Reduction,
        tape: &mut Tape<'m>,
    ) -> ln_tuning::Result<Tensor> {
        let loss = LinearCrossEntropy::default().reduction(reduction);
        match &self.form {
            Form::Text(model) => model.loss_with(inputs, labels, &loss, tape),
            Form::Seeing(model) => model.loss_with(inputs, labels, &loss, tape),
        }
    }

    /// As the library's [`Decoder::generate_streaming`].
    pub fn generate_streaming(
        &self,
        inputs: Inputs,
        options: &GenerateOptions,
        on_tokens: impl FnMut(&[i64]) -> bool,
    ) -> ln_tuning::Result<Tensor> {
        match &self.form {
            Form::Text(model) => model.generate_streaming(inputs, options, on_tokens),
            Form::Seeing(model) => model.generate_streaming(inputs, options, on_tokens),
        }
    }
}

/// The names that towers have, with and without a head on the model.
const TOWERS: [&str; 10] = [
    "model.vision_tower.",
    "model.vision_model.",
    "vision_tower.",
    "vision_model.",
    // Beside them stand the mergers, which are the connector.
    "model.visual.blocks.",
    "model.visual.patch_embed.",
    "model.visual.pos_embed.",
    "visual.blocks.",
    "visual.patch_embed.",
    "visual.pos_embed.",
];

/// Parts of a model that texts alone go past.
const SEEING: [&str; 5] =
    ["vision_tower", "vision_model", "visual", "multi_modal_projector", "connector"];

/// True for a variable that a text without a picture gives no gradient.
pub fn is_of_pictures(name: &str) -> bool {
    name.split('.').any(|part| SEEING.contains(&part))
}

/// Rates of dropout in the configuration of a tower.
const DROPOUTS: [&str; 3] = ["attention_dropout", "dropout", "hidden_dropout"];

/// True for an encoder-decoder.
pub fn reads_first(files: &ModelFiles) -> bool {
    files.model_type().is_some_and(|name| Seq2SeqConfig::model_types().contains(&name))
}

/// True for a model of images and texts.
pub fn sees(files: &ModelFiles) -> bool {
    files.model_type().is_some_and(|name| ImageTextToTextConfig::model_types().contains(&name))
}
