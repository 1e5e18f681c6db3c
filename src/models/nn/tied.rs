//! A tensor that is tied to another until an adapter unties it.

use tch::Tensor;

use super::rows::Rows;
use super::weight::Weight;
use crate::error::Result;

/// A tensor under a name of its own that is another one as long as it holds nothing.
///
/// As a mere clone it could not be untied: an adapter swaps the storage behind all clones at once.
#[derive(Debug)]
pub(in crate::models) struct Tied {
    original: Weight,
    own: Option<Weight>,
    /// The name of what is tied.
    name: Option<String>,
}

impl Tied {
    /// `own` is the copy that may be untied, with its name.
    pub(super) fn new(original: &Weight, own: Option<(String, Tensor)>) -> Self {
        let (name, own) = own.unzip();
        Tied { original: original.shallow_clone(), own: own.map(Weight::from), name }
    }

    pub(in crate::models) fn get(&self) -> &Weight {
        self.own.as_ref().filter(|own| !own.is_empty()).unwrap_or(&self.original)
    }

    /// The rows of now, if not all have the same.
    pub(in crate::models) fn rows(&self, beside: Option<&Tensor>) -> Option<Rows> {
        let named = || {
            let rows = Rows::current()?;
            rows.has_copy(self.name.as_deref()?).then_some(rows)
        };
        Rows::with_own([Some(self.get().variable()), beside]).or_else(named)
    }

    /// The weight as this adapter has it.
    pub(in crate::models) fn of_adapter(&self, rows: &Rows, adapter: usize) -> Result<Weight> {
        let copy = self.name.as_ref().filter(|name| rows.has_copy(name));
        match copy {
            Some(name) => match rows.of_copy(name, adapter) {
                Some(own) => Ok(Weight::from(own)),
                None => self.original.of_adapter(rows, adapter),
            },
            None => self.get().of_adapter(rows, adapter),
        }
    }

    /// Of each adapter, the first that has the same weight, and the same bias.
    pub(in crate::models) fn sharing(
        &self,
        rows: &Rows,
        bias: Option<&Tensor>,
    ) -> Result<Vec<usize>> {
        let weights = (0..rows.adapters())
            .map(|adapter| Ok(self.of_adapter(rows, adapter)?.variable().data_ptr() as usize));
        let (weights, biases) = (weights.collect::<Result<Vec<_>>>()?, rows.sharing([bias]));
        Ok(rows.sharing_by(|adapter| (weights[adapter], biases[adapter])))
    }

    /// As [`Weight::lookup`].
    pub(in crate::models) fn lookup(&self, ids: &Tensor, padding: i64) -> Result<Tensor> {
        match self.rows(None) {
            Some(rows) => {
                let sharing = self.sharing(&rows, None)?;
                rows.grouped_by(ids, &sharing, |ids, adapter| {
                    self.of_adapter(&rows, adapter)?.lookup(ids, padding)
                })
            }
            None => self.get().lookup(ids, padding),
        }
    }

    /// As [`Weight::logits`].
    pub(in crate::models) fn logits(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match self.rows(bias) {
            Some(rows) => rows.grouped_by(x, &self.sharing(&rows, bias)?, |x, adapter| {
                let bias = bias.map(|bias| rows.of(bias, adapter)).transpose()?;
                self.of_adapter(&rows, adapter)?.logits(x, bias.as_ref())
            }),
            None => self.get().logits(x, bias),
        }
    }
}

/// One that is not tied.
impl From<Weight> for Tied {
    fn from(weight: Weight) -> Self {
        Tied { original: weight, own: None, name: None }
    }
}
