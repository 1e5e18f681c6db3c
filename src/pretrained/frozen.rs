//! The way in which weights that no adapter trains are kept.

use std::fmt;
use std::str::FromStr;

use serde::{de, Deserialize, Deserializer};

use crate::error::{refuse, Error, Result};
use crate::quantised::Encoding;

/// The way in which the matrices of a base are kept: their form, and their place. Both are frozen, so any will do.
///
/// Norms, biases and small tensors stay as they are in every form, so that adapters train on them as always. A matrix
/// that is kept in few bits is computed anew whenever a layer needs it, in the kind of the model, and dropped: losses
/// and gradients are those of a model with the same values in memory. The graph of a plain `loss.backward()` keeps the
/// values of every layer until the backward pass has used them, so go backward through a tape
/// ([`backward_recompute`](crate::Optimizer::backward_recompute)), which computes them again for one block at a time:
/// with [`Blocks::All`](crate::recompute::Blocks::All) as well as with `Blocks::First(0)`, which keeps all activations.
/// Its bytes are a variable of the `VarStore` under the matrix's name, of the kind `Uint8`.
///
/// As text it is one or two words: `mapped`, `nf4`, `streamed, int8`; beside `streamed` also the share of the blocks
/// that stays: `streamed, resident 0.5`.
///
/// ```
/// use ln_tuning::pretrained::{Form, Frozen, Place};
/// let frozen: Frozen = "nf4".parse()?;
/// assert_eq!(frozen, Frozen::default().form(Form::Nf4));
/// assert_eq!("streamed, nf4".parse::<Frozen>()?, frozen.place(Place::Streamed));
/// assert_eq!("nf4, streamed, resident 0.25", frozen.place(Place::Streamed).resident(0.25).to_string());
/// assert_eq!(frozen.to_string(), "nf4");
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[doc(alias = "BitsAndBytesConfig")]
#[doc(alias = "load_in_4bit")]
#[doc(alias = "load_in_8bit")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Frozen {
    form: Form,
    place: Place,
    /// Of a thousand blocks.
    resident: u16,
}

/// The form of frozen matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Form {
    /// Numbers of the model's kind.
    #[default]
    Plain,
    /// The blocks of a GGUF file, as they are there.
    Gguf,
    /// A byte per weight, from -127 to 127, with a factor per output channel: half the memory of bf16.
    Int8,
    /// Four bits per weight, with a factor per 64 weights, as bitsandbytes computes them (QLoRA, arXiv 2305.14314):
    /// 0.28 times the memory of bf16.
    Nf4,
    /// Numbers of the model's kind, f32 or bf16, in the order that the CPU multiplies fastest with; on the CPU only, and
    /// with the feature `kernels`. The matrices of linear layers are brought to that order when they are first used, and
    /// a second time, the other way round, when a gradient first goes through them: that is their memory twice while a
    /// model trains, and once where it only answers. Pages of the file's map that they came from are given back.
    /// Variables stay as they are, under their names: what saves or merges them sees no difference. One that is changed
    /// is multiplied with as it is from then on. Embeddings and the heads of language models stay plain.
    Packed,
}

/// The place of frozen matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Place {
    /// On the CPU a map of the file where it holds what is needed; otherwise as `Device`.
    #[default]
    Mapped,
    /// Memory of the device; on the CPU, of the process.
    Device,
    /// On the host or in the file, from where they come when a block needs them, one block ahead of use; those of other
    /// blocks are in no memory. Train with [`recompute`](crate::recompute) of all blocks, and let the batches of a step
    /// go through each block together
    /// ([`backward_recompute_many`](crate::Optimizer::backward_recompute_many)).
    ///
    /// On the CPU they are pages of the file's map, so the files must have the wanted form: `int8` and `nf4`, which are
    /// computed when a model is loaded, are refused, and matrices of a GGUF file in f32, f16 or bf16 whose rows get
    /// another order (llama's `q` and `k`) stay in memory. A matrix that was written to stays too. On CUDA they are
    /// copied from pinned memory of the host, which holds all of them, to memory for two blocks; embeddings and heads
    /// stay on the device. Elsewhere, and on other systems than Linux, nothing is streamed: an error says so.
    Streamed,
}

impl Frozen {
    /// In this form.
    pub fn form(mut self, form: Form) -> Self {
        self.form = form;
        self
    }

    /// In this place.
    pub fn place(mut self, place: Place) -> Self {
        self.place = place;
        self
    }

    /// With this share of the blocks in memory, evenly spread, where [`Place::Streamed`] lets the others come: 0 to 1,
    /// to a thousandth. On the CPU they are a map of the file, on CUDA memory of the device. Default: 0.
    pub fn resident(mut self, share: f64) -> Self {
        self.resident = (share.clamp(0., 1.) * 1000.).round() as u16;
        self
    }

    /// True if the matrices of a block stay where they are needed.
    #[cfg_attr(not(feature = "models"), allow(dead_code))]
    pub(crate) fn is_resident(self, block: usize) -> bool {
        let before = |blocks: usize| blocks * usize::from(self.resident) / 1000;
        before(block + 1) > before(block)
    }

    pub(crate) fn parts(self) -> (Form, Place) {
        (self.form, self.place)
    }

    /// True if matrices come when a layer needs them.
    pub fn is_streamed(&self) -> bool {
        self.place == Place::Streamed
    }

    /// True if matrices are kept in few bits.
    pub fn is_quantised(self) -> bool {
        !matches!(self.form, Form::Plain | Form::Packed)
    }
}

/// Stands before the share of the blocks that stay.
const RESIDENT: &str = "resident";

const FORMS: [(&str, Form); 4] =
    [("gguf", Form::Gguf), ("int8", Form::Int8), ("nf4", Form::Nf4), ("packed", Form::Packed)];
const PLACES: [(&str, Place); 3] =
    [("mapped", Place::Mapped), ("device", Place::Device), ("streamed", Place::Streamed)];

impl FromStr for Frozen {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (mut form, mut place, mut resident) = (None, None, None);
        for word in text.split(',').map(str::trim) {
            if let Some(share) = word.strip_prefix(RESIDENT) {
                let number = share.trim().parse::<f64>().ok();
                let Some(share) = number.filter(|share| (0. ..=1.).contains(share)) else {
                    refuse!(
                        InvalidArgument,
                        "'{word}' does not say which share of the blocks stays in memory, expected a number from 0 to 1, \
                         as '{RESIDENT} 0.5'"
                    );
                };
                if resident.replace(share).is_some() {
                    refuse!(
                        InvalidArgument,
                        "'{text}' names two shares of blocks that stay: give one"
                    );
                }
                continue;
            }
            let as_form = FORMS.iter().find(|(name, _)| *name == word);
            let as_place = PLACES.iter().find(|(name, _)| *name == word);
            let twice = match (as_form, as_place) {
                (Some((_, known)), _) => form.replace(*known).is_some(),
                (_, Some((_, known))) => place.replace(*known).is_some(),
                _ => refuse!(
                    InvalidArgument,
                    "frozen weights cannot be kept as '{word}', expected a form (gguf, int8, nf4, packed), a place (mapped, \
                     device, streamed), or one of each, as 'gguf, streamed'; beside 'streamed' also the share of the \
                     blocks that stays, as '{RESIDENT} 0.5'"
                ),
            };
            if twice {
                refuse!(
                    InvalidArgument,
                    "'{text}' names two forms or two places of frozen weights: give one form (gguf, int8, nf4, packed) and one \
                     place (mapped, device, streamed) at most"
                );
            }
        }
        let frozen = Frozen { form: form.unwrap_or_default(), ..Frozen::default() };
        let frozen = frozen.place(place.unwrap_or_default());
        if frozen.form == Form::Packed && frozen.is_streamed() {
            refuse!(
                InvalidArgument,
                "'{text}' asks for matrices that are packed, which is in memory, and streamed, which is elsewhere: choose one"
            );
        }
        match resident {
            Some(_) if !frozen.is_streamed() => refuse!(
                InvalidArgument,
                "'{text}' keeps a share of the blocks in memory, and lets none be streamed: add 'streamed', or leave out \
                 '{RESIDENT}'"
            ),
            share => Ok(frozen.resident(share.unwrap_or_default())),
        }
    }
}

impl fmt::Display for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = FORMS.iter().find(|(_, form)| *form == self.form).map(|(name, _)| *name);
        let place = PLACES.iter().find(|(_, place)| *place == self.place).map(|(name, _)| *name);
        let place = place.filter(|_| form.is_none() || self.place != Place::default());
        match (form, place) {
            (Some(form), Some(place)) => write!(f, "{form}, {place}"),
            (form, place) => f.write_str(form.or(place).unwrap_or_default()),
        }?;
        if self.is_streamed() && self.resident > 0 {
            write!(f, ", {RESIDENT} {}", f64::from(self.resident) / 1000.)?;
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Frozen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Words;
        impl de::Visitor<'_> for Words {
            type Value = Frozen;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the words of a form (gguf, int8, nf4, packed), of a place (mapped, device, streamed), or of both")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Frozen, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Words)
    }
}

impl serde::Serialize for Frozen {
    fn serialize<S: serde::Serializer>(
        &self,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Form {
    /// The encoding that matrices are brought to when they are loaded.
    pub(crate) fn encoding(self) -> Option<Encoding> {
        match self {
            Form::Int8 => Some(Encoding::Int8),
            Form::Nf4 => Some(Encoding::Nf4),
            _ => None,
        }
    }
}
