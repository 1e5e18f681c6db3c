//! Generation: one token after the other, until it is enough.

use tch::{Device, Kind, Tensor};

use super::generation_config::GenerationConfig;
use crate::device::trace::{check_not_traced, sent_numbers};
use crate::error::{refuse, Result};
use crate::kernels::number::WithNumber;

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
    check_not_traced("generated tokens")?;
    let Prompt { ids, config } = prompt;
    config.check()?;
    let (batch, device) = (ids.size2()?.0, ids.device());
    let stop = options.stop.as_deref().unwrap_or(&config.eos);
    let pad = config.pad.or(stop.first().copied()).unwrap_or(0);
    let penalty = options.repetition_penalty.unwrap_or(config.repetition_penalty);
    let mut past = (penalty != 1.).then(|| Penalty { penalty, ids: ids.shallow_clone() });
    let mut draws = Draws::new(options, batch);
    let mut ended = Ended::new(batch, stop, pad, device)?;
    let mut columns: Vec<Tensor> = Vec::new();
    // The next token of a row that has ended is nobody's. It is not padding, which may have no embedding.
    let mut last: Option<Tensor> = None;
    while (columns.len() as i64) < options.max_new {
        let mut scores = logits(last.as_ref())?;
        if let Some(past) = &mut past {
            scores = past.apply(&scores, last.as_ref())?;
        }
        let chosen = if options.temperature == 0. {
            // Five times as fast as in bf16, on a CPU.
            let kind = if device.is_cuda() { scores.f_kind()? } else { Kind::Float };
            scores.f_to_kind(kind)?.f_argmax(-1, true)?
        } else {
            drawn(&scores, options, &draws.next(device)?)?
        };
        let column = ended.filled(&chosen)?;
        last = Some(chosen);
        // The one thing that is read from the device for a token.
        let tokens = Vec::<i64>::try_from(column.f_view([-1])?)?;
        columns.push(column);
        if !on_tokens(&tokens) || ended.all(&tokens) {
            break;
        }
    }
    Ok(Tensor::f_cat(&columns, 1)?)
}

/// The rows that have ended, on the device for the tokens that go on there, and on the host for the loop.
struct Ended<'a> {
    stop: &'a [i64],
    pad: i64,
    rows: Vec<bool>,
    /// The stop tokens `[stops]`, and the rows `[batch, 1]`; none where a row that ends is the last, or no row does.
    there: Option<(Tensor, Tensor)>,
}

impl<'a> Ended<'a> {
    fn new(batch: i64, stop: &'a [i64], pad: i64, device: Device) -> Result<Self> {
        let there = || -> Result<(Tensor, Tensor)> {
            let rows = Tensor::f_zeros([batch, 1], (Kind::Bool, device))?;
            Ok((sent_numbers(stop, device)?, rows))
        };
        let there = (batch > 1 && !stop.is_empty()).then(there).transpose()?;
        Ok(Ended { stop, pad, rows: vec![false; batch as usize], there })
    }

    /// The tokens `[batch, 1]`, padding where a row has ended.
    fn filled(&mut self, tokens: &Tensor) -> Result<Tensor> {
        let Some((stop, rows)) = &mut self.there else { return Ok(tokens.shallow_clone()) };
        let tokens = tokens.f_fill_where(rows, self.pad)?;
        let _ = rows.f_logical_or_(&tokens.f_eq_tensor(stop)?.f_any_dim(1, true)?)?;
        Ok(tokens)
    }

    /// True if these tokens end the last rows.
    fn all(&mut self, tokens: &[i64]) -> bool {
        for (row, token) in self.rows.iter_mut().zip(tokens) {
            *row |= self.stop.contains(token);
        }
        self.rows.iter().all(|row| *row)
    }
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
        // One more for tokens that stand for images, and have no logits.
        let vocabulary = logits.size2()?.1;
        let ids = self.ids.f_at_most(vocabulary)?;
        let scores = logits.f_to_kind(Kind::Float)?.f_constant_pad_nd([0, 1])?;
        let before = scores.f_gather(1, &ids, false)?;
        let less = before.f_mul_number(self.penalty)?;
        let after = before.f_div_number(self.penalty)?;
        let after = less.f_where_self(&before.f_lt_number(0.)?, &after)?;
        Ok(scores.f_scatter(1, &ids, &after)?.f_narrow(1, 0, vocabulary)?)
    }
}

/// A probability of 1, in the whole numbers that probabilities are added in.
const CERTAIN: f64 = (1_i64 << 40) as f64;

/// One token per row, `[batch, 1]`, by `draws` `[batch, 1]` from 0 to 1.
fn drawn(logits: &Tensor, options: &GenerateOptions, draws: &Tensor) -> Result<Tensor> {
    let (_, vocabulary) = logits.size2()?;
    let scores = logits.f_to_kind(Kind::Float)?.f_div_number(options.temperature)?;
    let kept = options.top_k.unwrap_or(vocabulary).min(vocabulary);
    // The likeliest first.
    let (scores, tokens) = scores.f_topk(kept, -1, true, true)?;
    let likely = scores.f_softmax(-1, Kind::Float)?;
    // In whole numbers, whose sums are the same in any order: CUDA promises none for others.
    let likely = likely.f_to_kind(Kind::Double)?.f_mul_number(CERTAIN)?.f_round()?;
    let likely = likely.f_to_kind(Kind::Int64)?;
    let before = likely.f_cumsum(-1, Kind::Int64)?.f_sub(&likely)?;
    // The first is kept always: nothing is before it.
    let likely =
        likely.f_fill_where(&before.f_ge_number(((options.top_p * CERTAIN) as i64).max(1))?, 0)?;
    let upto = likely.f_cumsum(-1, Kind::Int64)?;
    let draws = draws.f_mul(&upto.f_narrow(1, kept - 1, 1)?)?;
    let place =
        upto.f_le_tensor(&draws)?.f_sum_dim_intlist([-1_i64].as_slice(), true, Kind::Int64)?;
    Ok(tokens.f_gather(1, &place.f_at_most(kept - 1)?, false)?)
}

/// Random numbers on the device, brought there for many tokens at once: the device would wait for each copy.
struct Draws {
    random: Random,
    batch: i64,
    /// Tokens that may still come.
    left: i64,
    there: std::vec::IntoIter<Tensor>,
}

impl Draws {
    /// The most tokens at once.
    const TOKENS: i64 = 256;

    fn new(options: &GenerateOptions, batch: i64) -> Self {
        let there = Vec::new().into_iter();
        Draws { random: Random(options.seed), batch, left: options.max_new, there }
    }

    /// `[batch, 1]`
    fn next(&mut self, device: Device) -> Result<Tensor> {
        if let Some(draws) = self.there.next() {
            return Ok(draws);
        }
        let tokens = self.left.clamp(1, Self::TOKENS);
        self.left -= tokens;
        let draws: Vec<f64> = (0..tokens * self.batch).map(|_| self.random.next()).collect();
        let draws = sent_numbers(&draws, device)?.f_view([tokens, self.batch, 1])?;
        self.there = draws.f_unbind(0)?.into_iter();
        self.next(device)
    }
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
