//! A batch of rows as the model takes it.

use ln_tuning::models::Inputs;
use ln_tuning::Result;
use tch::{no_grad, Tensor};

use super::features::{Features, Key};
use super::model::LanguageModel;
use super::sizes::Sizes;

/// A batch of rows; padding is on the right, where no token looks.
pub struct TokenRows {
    pub ids: Tensor,
    /// The number of each token's document, where rows have several.
    pub documents: Option<Tensor>,
    /// Places of the longest document.
    pub reach: i64,
    /// The pictures of the rows, in their order.
    pub pictures: Vec<Shown>,
    pub sizes: Sizes,
}

/// A picture: its pixels, or what the tower has made of it.
pub enum Shown {
    Pixels { key: Key, values: Tensor },
    Features(Tensor),
}

/// The pictures of a batch, ready for the model.
pub enum Seen {
    Nothing,
    Pixels(Tensor),
    Features(Tensor),
}

impl TokenRows {
    /// A tower that does not train sees each picture alone, so that what it makes of one is the same whatever stands
    /// beside it, was kept or not.
    pub fn seen(
        &self,
        model: &LanguageModel,
        train: bool,
        kept: Option<&Features>,
    ) -> Result<Seen> {
        if self.pictures.is_empty() {
            return Ok(Seen::Nothing);
        }
        let fixed = model.tower_is_fixed(train);
        // An evaluation keeps nothing that training would see otherwise.
        let kept = kept.filter(|_| model.tower_is_fixed(true));
        let shown = |(at, shown): (usize, &Shown)| match shown {
            Shown::Features(features) => Ok(features.shallow_clone()),
            Shown::Pixels { values, .. } if !fixed => Ok(values.shallow_clone()),
            Shown::Pixels { key, values } => {
                let features =
                    no_grad(|| model.image_features(values, self.sizes.of_tower(at)?.as_ref()))?;
                if let Some(kept) = kept {
                    kept.keep(key, &features)?;
                }
                Ok(features)
            }
        };
        let shown = self.pictures.iter().enumerate().map(shown).collect::<Result<Vec<Tensor>>>()?;
        let all = Tensor::f_cat(&shown, 0)?;
        Ok(if fixed { Seen::Features(all) } else { Seen::Pixels(all) })
    }

    /// Texts of several batches in one, padded on the right, where no token looks.
    pub fn together(batches: &[&TokenRows]) -> Result<TokenRows> {
        let length = batches.iter().map(|batch| batch.length()).max().unwrap_or(0);
        let ids = padded(batches.iter().map(|batch| &batch.ids), length, |_| 0)?;
        let packed = batches.iter().any(|batch| batch.documents.is_some());
        let documents = batches.iter().map(|batch| match &batch.documents {
            Some(documents) => Ok(documents.shallow_clone()),
            // Each row is one.
            None => Ok(batch.ids.f_zeros_like()?),
        });
        let documents = documents.collect::<Result<Vec<_>>>()?;
        // Each place of the padding is a document of its own, as in the batches themselves.
        let own = |place: i64| -1 - (1 << 40) - place;
        let documents = packed.then(|| padded(documents.iter(), length, own)).transpose()?;
        let reach = batches.iter().map(|batch| batch.reach).max().unwrap_or(0);
        Ok(TokenRows { ids, documents, reach, pictures: Vec::new(), sizes: Sizes::default() })
    }

    /// Places of a row.
    pub fn length(&self) -> i64 {
        self.ids.size().get(1).copied().unwrap_or(0)
    }

    pub fn rows(&self) -> i64 {
        self.ids.size().first().copied().unwrap_or(0)
    }

    pub fn inputs<'t>(&'t self, seen: &'t Seen, train: bool) -> Inputs<'t> {
        let inputs = Inputs::new(&self.ids).documents(self.documents.as_ref()).train(train);
        let inputs = self.sizes.beside(inputs);
        match seen {
            Seen::Nothing => inputs,
            Seen::Pixels(pixels) => inputs.pixel_values(pixels),
            Seen::Features(features) => inputs.image_features(features),
        }
    }
}

/// Tables of whole numbers `[rows, places]` below each other, with `pad` of each place behind a shorter one's end.
pub fn padded<'t>(
    tables: impl Iterator<Item = &'t Tensor>,
    length: i64,
    pad: impl Fn(i64) -> i64,
) -> Result<Tensor> {
    let mut parts = Vec::new();
    for table in tables {
        let (rows, own) = table.size2()?;
        if own == length {
            parts.push(table.shallow_clone());
            continue;
        }
        let pads: Vec<i64> = (own..length).map(&pad).collect();
        let pads = Tensor::f_from_slice(&pads)?.f_expand([rows, length - own], false)?;
        parts.push(Tensor::f_cat(&[table, &pads.f_to_device(table.device())?], 1)?);
    }
    Ok(Tensor::f_cat(&parts, 0)?)
}
