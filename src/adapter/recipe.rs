//! The settings of the method's paper, by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{refuse, Error, Result};

/// A setting of the method's paper (arXiv 2312.11420) for models of images and texts, in place of `target_modules`. In
/// settings: `layernorm`, `layernorm-simple` or `connector`.
///
/// Norms are those of the text model and of the connector, every one that is recognised: the image tower stays as it
/// is. In a model without a connector, they are all norms. The connector is what stands between the image tower and the
/// text model: `multi_modal_projector`, `connector` or `visual.merger`.
///
/// ```
/// use ln_tuning::{LnTuningConfig, Recipe};
/// let config = LnTuningConfig::default().recipe(Recipe::LayernormSimple);
/// assert_eq!(LnTuningConfig::from_yaml("recipe: layernorm-simple")?, config);
/// # Ok::<(), ln_tuning::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Recipe {
    /// Norms, the connector, the embeddings of words and the head of the language model: for llava what PEFT tunes by
    /// default.
    Layernorm,
    /// Norms alone.
    LayernormSimple,
    /// The connector alone, for a first stage.
    Connector,
}

impl Recipe {
    /// Every recipe, in the order of their names in settings.
    pub const ALL: [Recipe; 3] = [Recipe::Layernorm, Recipe::LayernormSimple, Recipe::Connector];

    /// The name in settings.
    pub fn name(self) -> &'static str {
        ["layernorm", "layernorm-simple", "connector"][self as usize]
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Recipe {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(recipe) = Recipe::ALL.into_iter().find(|recipe| recipe.name() == text) {
            return Ok(recipe);
        }
        refuse!(
            InvalidConfig,
            "'recipe' is '{text}', expected one of {}",
            Recipe::ALL.map(Recipe::name).join(", ")
        )
    }
}
