//! The language model that is trained: opened from its files, and its loss.

use anyhow::{ensure, Result};
use ln_tuning::loss::{LinearCrossEntropy, Reduction};
use ln_tuning::models::{Decoder, DecoderConfig, Head, Inputs, Load, Model};
use ln_tuning::pretrained::ModelFiles;
use ln_tuning::recompute::Tape;
use tch::nn::VarStore;
use tch::{Device, Tensor};

use crate::progress;
use crate::train::order::step_seed;
use crate::train::settings::Settings;

pub struct LanguageModel {
    decoder: Decoder,
}

impl LanguageModel {
    pub fn open(
        files: ModelFiles,
        settings: &Settings,
        device: Device,
    ) -> Result<(VarStore, Self)> {
        let (files, bar) = progress::loading(files)?;
        tch::manual_seed(step_seed(settings.seed, u64::MAX));
        let load = Load::on(device)
            .kind(settings.kind.on(device))
            .frozen(settings.base)
            .head(Head::LanguageModel);
        let (vs, decoder) = Decoder::from_files(files, &load)?;
        bar.finish_and_clear();
        Ok((vs, LanguageModel { decoder }))
    }

    pub fn config(&self) -> &DecoderConfig {
        self.decoder.config()
    }

    /// Refuses ids that the model has no embedding for.
    pub fn check_ids(&self, largest: Option<u32>) -> Result<()> {
        let vocabulary = self.decoder.config().vocab_size();
        let id = largest.map_or(-1, i64::from);
        ensure!(
            id < vocabulary,
            "the tokenizer gives the id {id}, and the model has a vocabulary of {vocabulary}"
        );
        Ok(())
    }

    /// True if the weights come when they are needed: best once for all batches of a step.
    pub fn is_streamed(&self) -> bool {
        self.decoder.is_streamed()
    }

    /// [`loss`](Self::loss) of several batches with their labels.
    pub fn losses<'m>(
        &'m self,
        batches: &[(Inputs, &Tensor)],
        reduction: Reduction,
        tape: &mut Tape<'m>,
    ) -> ln_tuning::Result<Vec<Tensor>> {
        let loss = LinearCrossEntropy::default().reduction(reduction);
        self.decoder.losses_with(batches, &loss, tape)
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
        self.decoder.loss_with(inputs, labels, &loss, tape)
    }
}
