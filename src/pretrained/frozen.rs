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
/// and gradients are those of a model with the same values in memory. Autograd keeps the values of a layer until the
/// backward pass has used them, so train with block checkpointing ([`recompute`](crate::recompute)), which drops them
/// too. Its bytes are a variable of the `VarStore` under the matrix's name, of the kind `Uint8`.
///
/// As text it is one or two words: `mapped`, `nf4`, `streamed, int8`.
///
/// ```
/// use ln_tuning::pretrained::{Form, Frozen, Place};
/// let frozen: Frozen = "nf4".parse()?;
/// assert_eq!(frozen, Frozen::default().form(Form::Nf4));
/// assert_eq!("streamed, nf4".parse::<Frozen>()?, frozen.place(Place::Streamed));
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
    /// computed when a model is loaded, are refused, and matrices of a GGUF file whose rows get another order (llama's
    /// `q` and `k`) stay in memory. A matrix that was written to stays too. On CUDA they are copied from pinned memory
    /// of the host, which holds all of them, to memory for two blocks; embeddings and heads stay on the device.
    /// Elsewhere, and on other systems than Linux, nothing is streamed: an error says so.
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

    pub(crate) fn parts(self) -> (Form, Place) {
        (self.form, self.place)
    }

    /// True if matrices come when a layer needs them.
    pub fn is_streamed(&self) -> bool {
        self.place == Place::Streamed
    }

    /// True if matrices are kept in few bits.
    pub fn is_quantised(self) -> bool {
        self.form != Form::Plain
    }
}

const FORMS: [(&str, Form); 3] = [("gguf", Form::Gguf), ("int8", Form::Int8), ("nf4", Form::Nf4)];
const PLACES: [(&str, Place); 3] =
    [("mapped", Place::Mapped), ("device", Place::Device), ("streamed", Place::Streamed)];

impl FromStr for Frozen {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (mut form, mut place) = (None, None);
        for word in text.split(',').map(str::trim) {
            let as_form = FORMS.iter().find(|(name, _)| *name == word);
            let as_place = PLACES.iter().find(|(name, _)| *name == word);
            let twice = match (as_form, as_place) {
                (Some((_, known)), _) => form.replace(*known).is_some(),
                (_, Some((_, known))) => place.replace(*known).is_some(),
                _ => refuse!(
                    InvalidArgument,
                    "frozen weights cannot be kept as '{word}', expected a form (gguf, int8, nf4), a place (mapped, \
                     device, streamed), or one of each, as 'gguf, streamed'"
                ),
            };
            if twice {
                refuse!(
                    InvalidArgument,
                    "'{text}' names two forms or two places of frozen weights: give one form (gguf, int8, nf4) and one \
                     place (mapped, device, streamed) at most"
                );
            }
        }
        Ok(Frozen { form: form.unwrap_or_default(), place: place.unwrap_or_default() })
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
        }
    }
}

impl<'de> Deserialize<'de> for Frozen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Words;
        impl de::Visitor<'_> for Words {
            type Value = Frozen;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the words of a form (gguf, int8, nf4), of a place (mapped, device, streamed), or of both")
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
