//! The answers of one batch, whose rows use different adapters.

use std::io::Write;
use std::time::Instant;

use anyhow::{anyhow, Context, Result};
use ln_tuning::models::{GenerateOptions, Inputs};
use ln_tuning::{ErrorKind, LnTuningModel};
use tch::{Device, Tensor};
use tokenizers::Tokenizer;

use crate::language::answerer::Answerer;
use crate::language::encoder::TextEncoder;
use crate::language::vision::Grid;
use crate::{columns, progress};

/// The base in the library's names of adapters.
pub const BASE: &str = "__base__";

/// A prompt that is to be answered with an adapter, or with the base.
#[derive(Debug, Clone)]
pub struct Row {
    /// The number of the prompt.
    pub prompt: usize,
    pub name: String,
}

/// The model that answers, and its words.
pub struct Answering<'a> {
    pub model: &'a Answerer,
    pub encoder: &'a TextEncoder,
    pub options: &'a GenerateOptions,
    /// Tokens of an answer, at most.
    pub most: u64,
    pub stops: &'a [i64],
    pub device: Device,
    /// The tiles of the pictures that each prompt has, and what they are cut into.
    pub pixels: Option<&'a Tensor>,
    pub grids: &'a [Grid],
}

impl Answering<'_> {
    /// The answers to prompts `[length]` each, in the order of the rows; shown as it comes if it is one.
    pub fn answers(
        &self,
        prompts: &[Vec<i64>],
        rows: &[Row],
        tuned: Option<&mut LnTuningModel>,
    ) -> Result<Vec<String>> {
        let start = Instant::now();
        let (new, streamed) = self.tokens(prompts, rows, tuned)?;
        let seconds = start.elapsed().as_secs_f64();
        let count: usize = new.iter().map(Vec::len).sum();
        let texts = new.iter().map(|tokens| text(self.encoder.tokenizer(), tokens));
        let texts = texts.collect::<Result<Vec<_>>>()?;
        if let (Some(shown), [whole]) = (streamed, &texts[..]) {
            // The stream holds back a character whose last bytes never came.
            println!("{}", whole.strip_prefix(&shown).unwrap_or_default());
        }
        eprintln!("{count} tokens, {:.1} a second", count as f64 / seconds);
        Ok(texts)
    }

    /// The new tokens of each row, and what was shown of one.
    fn tokens(
        &self,
        prompts: &[Vec<i64>],
        rows: &[Row],
        tuned: Option<&mut LnTuningModel>,
    ) -> Result<(Vec<Vec<u32>>, Option<String>)> {
        let Some(tuned) = tuned else { return self.batch(prompts, rows, false) };
        if rows.iter().any(|row| row.name != rows[0].name) {
            match self.batch(prompts, rows, true) {
                // An adapter has a part that rows cannot have of their own.
                Err(error) if is_unsupported(&error) => {}
                done => return done,
            }
        }
        let mut all = vec![Vec::new(); rows.len()];
        let mut shown = None;
        let mut left: Vec<usize> = (0..rows.len()).collect();
        while let Some(first) = left.first() {
            let name = rows[*first].name.clone();
            let (own, others): (Vec<usize>, Vec<usize>) =
                left.iter().partition(|row| rows[**row].name == name);
            let of_name: Vec<Row> = own.iter().map(|row| rows[*row].clone()).collect();
            let (tokens, streamed) = if name == BASE {
                tuned.with_disabled(|| self.batch(prompts, &of_name, false))??
            } else {
                tuned.set_adapter(&name)?;
                self.batch(prompts, &of_name, false)?
            };
            own.into_iter().zip(tokens).for_each(|(row, tokens)| all[row] = tokens);
            (shown, left) = (streamed, others);
        }
        Ok((all, shown.filter(|_| rows.len() == 1)))
    }

    /// All rows at once, with their own adapters or the active one.
    fn batch(
        &self,
        prompts: &[Vec<i64>],
        rows: &[Row],
        mixed: bool,
    ) -> Result<(Vec<Vec<u32>>, Option<String>)> {
        let longest = rows.iter().map(|row| prompts[row.prompt].len()).max().unwrap_or(0);
        let left = self.model.pads_left();
        let padded = |fill: &dyn Fn(i64) -> i64| -> Result<Tensor> {
            let all = rows.iter().flat_map(|row| {
                let ids = &prompts[row.prompt];
                let padding =
                    |there| std::iter::repeat_n(0, if there { longest - ids.len() } else { 0 });
                let ids = ids.iter().map(|id| fill(*id));
                padding(left).chain(ids).chain(padding(!left))
            });
            let all = Tensor::f_from_slice(&all.collect::<Vec<i64>>())?;
            Ok(all.f_view([rows.len() as i64, -1])?.f_to_device(self.device)?)
        };
        let (ids, mask) = (padded(&|id| id)?, padded(&|_| 1)?);
        let pads = rows.iter().any(|row| prompts[row.prompt].len() < longest);
        let pixels = self.pixels.map(|pixels| Tensor::f_cat(&vec![pixels; rows.len()], 0));
        let pixels = pixels.transpose()?;
        let sizes = self.encoder.sizes(&self.grids.repeat(rows.len()))?;
        let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        let mut inputs = Inputs::new(&ids).pixel_values(pixels.as_ref());
        inputs = sizes.beside(inputs).attention_mask(pads.then_some(&mask));
        if mixed {
            inputs = inputs.adapter_names(&names);
        }
        let mut new: Vec<Vec<u32>> = vec![Vec::new(); rows.len()];
        let mut stream = self.encoder.tokenizer().decode_stream(true);
        let (mut shown, mut failed) = (String::new(), None);
        // One answer is seen as it comes; of several, how far they are.
        let bar = progress::counted("answering", self.most)?;
        let _ = self.model.generate_streaming(inputs, self.options, |tokens| {
            for (row, token) in new.iter_mut().zip(tokens) {
                // A row that has ended is filled up.
                if row.last().is_none_or(|last| !self.stops.contains(&i64::from(*last))) {
                    row.push(*token as u32);
                }
            }
            if rows.len() > 1 {
                bar.inc(1);
                return true;
            }
            match stream.step(tokens[0] as u32) {
                Ok(text) => {
                    let text = text.unwrap_or_default();
                    print!("{text}");
                    let _ = std::io::stdout().flush();
                    shown += &text;
                    true
                }
                Err(error) => {
                    failed = Some(anyhow!(error));
                    false
                }
            }
        })?;
        bar.finish_and_clear();
        match failed {
            Some(error) => Err(error.context("a token cannot be decoded")),
            None => Ok((new, (rows.len() == 1).then_some(shown))),
        }
    }
}

fn is_unsupported(error: &anyhow::Error) -> bool {
    let known = error.downcast_ref::<ln_tuning::Error>();
    known.is_some_and(|error| error.kind() == ErrorKind::Unsupported)
}

fn text(tokenizer: &Tokenizer, tokens: &[u32]) -> Result<String> {
    let text = tokenizer.decode(tokens, true).map_err(|error| anyhow!(error));
    text.context("the tokens cannot be decoded")
}

/// The answers to each prompt side by side, below the prompt if there are several.
pub fn table(prompts: &[String], rows: &[Row], answers: &[String], width: usize) -> String {
    let mut whole = String::new();
    let base = if rows.iter().any(|row| row.name == "base") { BASE } else { "base" };
    for (prompt, text) in prompts.iter().enumerate() {
        let own = rows.iter().zip(answers).filter(|(row, _)| row.prompt == prompt);
        let own = own.map(|(row, answer)| {
            let name = if row.name == BASE { base } else { &row.name };
            (name.to_owned(), answer.clone())
        });
        let own: Vec<(String, String)> = own.collect();
        if own.is_empty() {
            continue;
        }
        if prompts.len() > 1 {
            let blank = if whole.is_empty() { "" } else { "\n" };
            whole += &format!("{blank}> {}\n", text.trim());
        }
        whole += &columns::side_by_side(&own, width);
    }
    whole
}
