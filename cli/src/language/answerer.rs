//! A model that answers prompts: a language model, or an encoder-decoder.

use anyhow::Result;
use ln_tuning::models::{GenerateOptions, Inputs, Load, Model, Seq2Seq};
use ln_tuning::pretrained::ModelFiles;
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use super::model::{reads_first, LanguageModel};

pub enum Answerer {
    Language(LanguageModel),
    /// It reads the prompt with its encoder, and the answer begins with a token of its own.
    Seq2Seq(Box<Seq2Seq>),
}

impl Answerer {
    pub fn load(files: ModelFiles, load: &Load) -> Result<(VarStore, Self)> {
        if reads_first(&files) {
            let (vs, model) = Seq2Seq::from_files(files, load)?;
            return Ok((vs, Answerer::Seq2Seq(Box::new(model))));
        }
        let (vs, model) = LanguageModel::load(files, load)?;
        Ok((vs, Answerer::Language(model)))
    }

    /// That of the weights.
    pub fn kind(&self) -> Kind {
        match self {
            Answerer::Language(model) => model.kind(),
            Answerer::Seq2Seq(model) => model.kind(),
        }
    }

    /// The side of a prompt that padding stands on: an answer goes on behind the prompt of a language model, and an
    /// encoder counts places from the left.
    pub fn pads_left(&self) -> bool {
        matches!(self, Answerer::Language(_))
    }

    /// As the library's [`Seq2Seq::generate_streaming`].
    pub fn generate_streaming(
        &self,
        inputs: Inputs,
        options: &GenerateOptions,
        on_tokens: impl FnMut(&[i64]) -> bool,
    ) -> ln_tuning::Result<Tensor> {
        match self {
            Answerer::Language(model) => model.generate_streaming(inputs, options, on_tokens),
            Answerer::Seq2Seq(model) => model.generate_streaming(inputs, options, on_tokens),
        }
    }
}
