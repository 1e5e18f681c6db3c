//! A tensor that is tied to another until an adapter unties it.

use tch::Tensor;

/// A tensor under a name of its own that is another one as long as it holds nothing.
///
/// As a mere clone it could not be untied: an adapter swaps the storage behind all clones at once.
#[derive(Debug)]
pub(in crate::models) struct Tied {
    original: Tensor,
    own: Option<Tensor>,
}

impl Tied {
    pub(super) fn new(original: &Tensor, own: Option<Tensor>) -> Self {
        Tied { original: original.shallow_clone(), own }
    }

    pub(in crate::models) fn get(&self) -> &Tensor {
        self.own.as_ref().filter(|own| own.numel() > 0).unwrap_or(&self.original)
    }
}

/// One that is not tied.
impl From<Tensor> for Tied {
    fn from(tensor: Tensor) -> Self {
        Tied { original: tensor, own: None }
    }
}
