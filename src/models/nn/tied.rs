//! A tensor that is tied to another until an adapter unties it.

use tch::Tensor;

use super::weight::Weight;

/// A tensor under a name of its own that is another one as long as it holds nothing.
///
/// As a mere clone it could not be untied: an adapter swaps the storage behind all clones at once.
#[derive(Debug)]
pub(in crate::models) struct Tied {
    original: Weight,
    own: Option<Weight>,
}

impl Tied {
    pub(super) fn new(original: &Weight, own: Option<Tensor>) -> Self {
        Tied { original: original.shallow_clone(), own: own.map(Weight::from) }
    }

    pub(in crate::models) fn get(&self) -> &Weight {
        self.own.as_ref().filter(|own| !own.is_empty()).unwrap_or(&self.original)
    }
}

/// One that is not tied.
impl From<Weight> for Tied {
    fn from(weight: Weight) -> Self {
        Tied { original: weight, own: None }
    }
}
