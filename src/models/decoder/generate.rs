//! Text continued by a decoder.

use tch::{no_grad, no_grad_guard, Tensor};

use super::ahead::Ahead;
use super::model::Decoder;
use crate::error::{refuse, Result};
use crate::kernels::number;
use crate::models::config::not_implemented;
use crate::models::generation::{generated, GenerateOptions, Prompt};
use crate::models::inputs::Inputs;
use crate::models::model::Model;
use crate::models::nn::{Cache, Places, Stay};

impl Decoder {
    /// Continues each row of `inputs`, which padding on the left brings to one length: the new tokens `[batch, new]`. A
    /// row that ends before others is filled with padding. Keys and values of past tokens are kept, so that each token
    /// is computed once.
    ///
    /// # Errors
    /// `Unsupported` if `generation_config.json` sets an option that changes the tokens and is not implemented, such as
    /// `no_repeat_ngram_size`; `InvalidState` without a language model's head; `InvalidArgument` for options out of
    /// range, rows that end in padding, or more positions than the model has; otherwise as
    /// [`hidden_states`](Model::hidden_states).
    ///
    /// ```no_run
    /// use ln_tuning::models::{Decoder, GenerateOptions, Model};
    /// # let ids = tch::Tensor::from_slice2(&[[1_i64, 2]]);
    /// let (_vs, model) = Decoder::from_pretrained("Llama-3.2-1B", tch::Device::Cpu, None)?;
    /// let options = GenerateOptions::default().max_new_tokens(32).temperature(0.7).top_p(0.9);
    /// let new = model.generate(&ids, &options)?;
    /// # Ok::<(), ln_tuning::Error>(())
    /// ```
    pub fn generate<'a>(
        &self,
        inputs: impl Into<Inputs<'a>>,
        options: &GenerateOptions,
    ) -> Result<Tensor> {
        self.generate_streaming(inputs, options, |_| true)
    }

    /// [`generate`](Self::generate) that calls `on_tokens` with each step's tokens, one per row. It ends early if that
    /// returns false.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    #[doc(alias = "TextStreamer")]
    pub fn generate_streaming<'a>(
        &self,
        inputs: impl Into<Inputs<'a>>,
        options: &GenerateOptions,
        on_tokens: impl FnMut(&[i64]) -> bool,
    ) -> Result<Tensor> {
        let inputs = inputs.into();
        inputs.check(self.model_type(), &["input_ids", "attention_mask"])?;
        // Gathered once for all tokens: rows stay in their places, also those that have ended.
        let rows = no_grad(|| inputs.named_rows(&self.sites))?;
        let inputs = inputs.with_rows(rows.as_ref());
        if inputs.train {
            refuse!(InvalidArgument, "generation knows no dropout: leave out `train`");
        }
        self.head.language_model()?;
        let rules = &self.config.generation;
        for (key, forced) in [
            ("forced_bos_token_id", rules.forced_first),
            ("forced_eos_token_id", rules.forced_last),
        ] {
            if forced.is_some() {
                return not_implemented(&format!("'{key}' in the configuration of generation"));
            }
        }
        let ids = inputs.needed_ids()?;
        let (length, device) = (ids.size2()?.1, ids.device());
        if length == 0 {
            refuse!(
                InvalidArgument,
                "the ids have shape {:?}, expected a token to continue: begin with the model's 'bos_token_id'",
                ids.size()
            );
        }
        // The mask of all places that there will be.
        let tokens = match inputs.tokens()? {
            Some(tokens) => {
                if !bool::try_from(tokens.f_select(1, length - 1)?.f_all()?)? {
                    refuse!(
                        InvalidArgument,
                        "a row ends in padding: pad on the left for generation"
                    );
                }
                let tokens = tokens.f_constant_pad_nd([0, options.max_new])?;
                let _ = tokens.f_narrow(1, length, options.max_new)?.f_fill_(1)?;
                Some(tokens)
            }
            None => None,
        };
        let total = length.saturating_add(options.max_new);
        let places = Places {
            start: 0,
            length: total,
            device,
            tokens: tokens.as_ref(),
            documents: None,
            blocks: None,
        };
        let mut ahead = Ahead::new(&self.config, places)?;
        let mut cache = Cache::new(self.blocks.len(), total);
        let prompt = Prompt { ids, config: rules };
        let mut all = ids.shallow_clone();
        // A guard: gradients come back also where `on_tokens` panics.
        let _without_graph = no_grad_guard();
        generated(options, prompt, on_tokens, |last| {
            let _rows = inputs.enter();
            let mut ids = last.unwrap_or(ids);
            if let (Some(places), Some(last)) = (self.config.kept_places, last) {
                all = Tensor::f_cat(&[&all, last], 1)?;
                if cache.length <= places && all.size2()?.1 > places {
                    (cache.length, ids) = (0, &all);
                }
            }
            let (start, length) = (cache.length, ids.size2()?.1);
            let seen = tokens.as_ref().map(|tokens| tokens.f_narrow(1, 0, start + length));
            let seen = seen.transpose()?;
            let places = Places {
                start,
                length,
                device,
                tokens: seen.as_ref(),
                documents: None,
                blocks: inputs.blocks.filter(|_| start == 0),
            };
            let (positions, added) = match inputs.positions {
                Some(prompt) if start == 0 => (prompt.shallow_clone(), inputs.added),
                Some(prompt) => (behind_positions(prompt, start, length)?, &[][..]),
                None => (ahead.positions(start, length)?, &[][..]),
            };
            let ahead = (length == 1).then_some(&mut ahead);
            // Those of the prompt, which is not read again: see `DecoderConfig::within`.
            let embedded = match inputs.inputs_embeds.filter(|_| start == 0) {
                Some(prompt) => prompt.shallow_clone(),
                None => self.embedded(ids)?,
            };
            let hidden = self.continued(embedded, &places, &positions, added, ahead, &mut cache)?;
            cache.length += length;
            let last = hidden.f_narrow(1, length - 1, 1)?;
            self.head_stay.iter().try_for_each(Stay::enter)?;
            Ok(self.head.forward(&last, &self.config, &inputs)?.f_squeeze_dim(1)?)
        })
    }
}

/// The positions `[batch, length]` of places behind a prompt with positions of its own, `[axes, batch, prompt]`.
fn behind_positions(prompt: &Tensor, start: i64, length: i64) -> Result<Tensor> {
    let first = start - prompt.size3()?.2 + 1;
    let places = number::arange(first, first + length, prompt.device())?;
    Ok(prompt.f_amax([0_i64, 2].as_slice(), false)?.f_unsqueeze(1)?.f_add(&places)?)
}
