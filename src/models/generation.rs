//! Generation: one token after the other, until it is enough.

use tch::{Kind, Tensor};

use super::generation_config::GenerationConfig;
use crate::error::{refuse, Result};

/// Options of generation. The default is greedy, for at most 128 tokens.
///
/// ```
/// use ln_tuning::models::GenerateOptions;
/// let options = GenerateOptions::default().max_new_tokens(64).temperature(0.8).top_k(50).seed(1);
/// ```
#[doc(alias = "GenerationConfig")]
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    pub(super) max_new: i64,
    temperature: f64,
    top_k: Option<i64>,
    top_p: f64,
    stop: Option<Vec<i64>>,
    repetition_penalty: Option<f64>,
    seed: u64,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_new: 128,
            temperature: 0.,
            top_k: None,
            top_p: 1.,
            stop: None,
            repetition_penalty: None,
            seed: 0,
        }
    }
}

impl GenerateOptions {
    /// At most this many tokens, at least one. Default: 128.
    pub fn max_new_tokens(mut self, tokens: i64) -> Self {
        self.max_new = tokens;
        self
    }

    /// Draws the token with probabilities softmax(logits / temperature). Default: 0, the likeliest token is taken.
    pub fn temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// Draws from this many of the likeliest tokens only. Default: from all.
    pub fn top_k(mut self, tokens: impl Into<Option<i64>>) -> Self {
        self.top_k = tokens.into();
        self
    }

    /// Draws from the fewest tokens only that together are this likely (arXiv 1904.09751), after `top_k`. Default: 1.
    pub fn top_p(mut self, probability: f64) -> Self {
        self.top_p = probability;
        self
    }

    /// A row ends behind one of these. Default: `eos_token_id` of the model's `generation_config.json` or
    /// `config.json`. With none, every row has all `max_new_tokens`.
    pub fn stop_tokens(mut self, tokens: impl IntoIterator<Item = i64>) -> Self {
        self.stop = Some(tokens.into_iter().collect());
        self
    }

    /// Makes tokens that stand in the row already less likely: logits are divided by this if positive, else multiplied
    /// (arXiv 1909.05858). Default: that of the model's `generation_config.json`, else 1, none.
    pub fn repetition_penalty(mut self, penalty: f64) -> Self {
        self.repetition_penalty = Some(penalty);
        self
    }

    /// The seed of the draws: the same seed gives the same text, whatever else draws numbers. Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    fn check(&self) -> Result<()> {
        let wrong = match self {
            _ if self.max_new < 1 => format!("max_new_tokens is {}", self.max_new),
            _ if !(self.temperature >= 0. && self.temperature.is_finite()) => {
                format!("temperature is {}, expected 0 or more", self.temperature)
            }
            _ if self.top_k.is_some_and(|k| k < 1) => "top_k is below 1".into(),
            _ if !(self.top_p > 0. && self.top_p <= 1.) => {
                format!("top_p is {}, expected a number above 0 and up to 1", self.top_p)
            }
            _ if self.repetition_penalty.is_some_and(|p| !(p > 0. && p.is_finite())) => {
                "repetition_penalty is not a finite number above 0".into()
            }
            _ => return Ok(()),
        };
        refuse!(InvalidArgument, "{wrong}")
    }
}

/// The tokens that are continued, and the rules of the model's files.
pub(super) struct Prompt<'a> {
    /// `[batch, length]`
    pub(super) ids: &'a Tensor,
    pub(super) config: &'a GenerationConfig,
}

/// Calls `logits` with the last tokens `[batch, 1]` (`None`: for the first time) until all rows have ended. It gives
/// `[batch, vocabulary]`. Returns the tokens, `[batch, new]`.
pub(super) fn generated(
    options: &GenerateOptions,
    prompt: Prompt,
    mut on_tokens: impl FnMut(&[i64]) -> bool,
    mut logits: impl FnMut(Option<&Tensor>) -> Result<Tensor>,
) -> Result<Tensor> {
    options.check()?;
    let Prompt { ids, config } = prompt;
    config.check()?;
    let (batch, device) = (ids.size2()?.0, ids.device());
    let stop = options.stop.as_deref().unwrap_or(&config.eos);
    let pad = config.pad.or(stop.first().copied()).unwrap_or(0);
    let penalty = options.repetition_penalty.unwrap_or(config.repetition_penalty);
    let mut past = (penalty != 1.).then(|| Penalty { penalty, ids: ids.shallow_clone() });
    let mut random = Random(options.seed);
    let mut ended = vec![false; batch as usize];
    let mut columns: Vec<Tensor> = Vec::new();
    while (columns.len() as i64) < options.max_new {
        let mut scores = logits(columns.last())?;
        if let Some(past) = &mut past {
            scores = past.apply(&scores, columns.last())?;
        }
        let chosen = if options.temperature == 0. {
            // Five times as fast as in bf16, on a CPU.
            scores.f_to_kind(Kind::Float)?.f_argmax(-1, true)?
        } else {
            drawn(&scores, options, &mut random)?
        };
        let mut tokens = Vec::<i64>::try_from(chosen.f_view([-1])?)?;
        for (token, ended) in tokens.iter_mut().zip(&mut ended) {
            if *ended {
                *token = pad;
            }
            *ended |= stop.contains(token);
        }
        let column = Tensor::f_from_slice(&tokens)?.f_view([-1, 1])?.f_to_device(device)?;
        columns.push(column);
        if !on_tokens(&tokens) || ended.iter().all(|ended| *ended) {
            break;
        }
    }
    Ok(Tensor::f_cat(&columns, 1)?)
}

/// The tokens so far, which become less likely.
struct Penalty {
    penalty: f64,
    ids: Tensor,
}

impl Penalty {
    /// `logits` `[batch, vocabulary]`; `last` `[batch, 1]` joins the tokens.
    fn apply(&mut self, logits: &Tensor, last: Option<&Tensor>) -> Result<Tensor> {
        if let Some(last) = last {
            self.ids = Tensor::f_cat(&[&self.ids, last], 1)?;
        }
        let scores = logits.f_to_kind(Kind::Float)?;
        let before = scores.f_gather(1, &self.ids, false)?;
        let less = before.f_mul_scalar(self.penalty)?;
        let after = before.f_div_scalar(self.penalty)?;
        let after = less.f_where_self(&before.f_lt(0.)?, &after)?;
        Ok(scores.f_scatter(1, &self.ids, &after)?)
    }
}

/// One token per row, `[batch, 1]`.
fn drawn(logits: &Tensor, options: &GenerateOptions, random: &mut Random) -> Result<Tensor> {
    let (batch, vocabulary) = logits.size2()?;
    let scores = logits.f_to_kind(Kind::Float)?.f_div_scalar(options.temperature)?;
    let kept = options.top_k.unwrap_or(vocabulary).min(vocabulary);
    // The likeliest first.
    let (scores, tokens) = scores.f_topk(kept, -1, true, true)?;
    let likely = scores.f_softmax(-1, Kind::Float)?;
    let before = likely.f_cumsum(-1, Kind::Float)?.f_sub(&likely)?;
    // The first is kept always: nothing is before it.
    let likely = likely.f_masked_fill(&before.f_ge(options.top_p)?, 0.)?;
    let upto = likely.f_cumsum(-1, Kind::Double)?;
    let draws: Vec<f64> = (0..batch).map(|_| random.next()).collect();
    let draws = Tensor::f_from_slice(&draws)?.f_view([-1, 1])?.f_to_device(logits.device())?;
    let draws = draws.f_mul(&upto.f_narrow(1, kept - 1, 1)?)?;
    let place =
        upto.f_le_tensor(&draws)?.f_sum_dim_intlist([-1_i64].as_slice(), true, Kind::Int64)?;
    Ok(tokens.f_gather(1, &place.f_clamp_max(kept - 1)?, false)?)
}

/// SplitMix64: tch has no generator that is apart from everybody's.
struct Random(u64);

impl Random {
    /// At least 0 and below 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}
