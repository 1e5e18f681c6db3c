//! What a language model is given.

use tch::{Kind, Tensor};

use crate::error::{Error, ErrorKind, Result};

/// Token ids, and what goes with them. From `&Tensor` where there is nothing but ids.
///
/// ```
/// # use tch::{Kind, Tensor};
/// use ln_tuning::models::Inputs;
/// let ids = Tensor::from_slice2(&[[5_i64, 6, 7], [0, 8, 9]]);
/// let mask = Tensor::from_slice2(&[[1_i64, 1, 1], [0, 1, 1]]);
/// let inputs = Inputs::new(&ids).attention_mask(&mask).train(true);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    pub(super) ids: &'a Tensor,
    pub(super) attention_mask: Option<&'a Tensor>,
    pub(super) documents: Option<&'a Tensor>,
    pub(super) train: bool,
}

impl<'a> Inputs<'a> {
    /// Token ids `[batch, length]`, Int64, on the model's device.
    #[doc(alias = "input_ids")]
    pub fn new(ids: &'a Tensor) -> Self {
        Inputs { ids, attention_mask: None, documents: None, train: false }
    }

    /// `[batch, length]`: 1 for tokens and 0 for padding, on either side. Default: no padding.
    pub fn attention_mask(mut self, mask: impl Into<Option<&'a Tensor>>) -> Self {
        self.attention_mask = mask.into();
        self
    }

    /// Several documents packed into one row: `[batch, length]`, Int64, the number of the document that a token belongs
    /// to; each document is a run of one number, and padding has a number of its own, such as -1. Attention stays within
    /// a document and positions restart with it. In the place of `attention_mask`. Default: each row is one document.
    pub fn documents(mut self, documents: impl Into<Option<&'a Tensor>>) -> Self {
        self.documents = documents.into();
        self
    }

    /// Whether dropout is applied. Default: no.
    pub fn train(mut self, train: bool) -> Self {
        self.train = train;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let size = self.ids.size();
        let named = [("attention_mask", self.attention_mask), ("documents", self.documents)];
        for (name, tensor) in named {
            if tensor.is_some_and(|tensor| tensor.size() != size) {
                return Err(Error::new(
                    ErrorKind::ShapeMismatch,
                    format!(
                        "'{name}' has shape {:?}, expected that of the ids, {size:?}",
                        tensor.map(Tensor::size).unwrap_or_default()
                    ),
                ));
            }
        }
        if size.len() != 2 {
            return Err(Error::new(
                ErrorKind::ShapeMismatch,
                format!("the ids have shape {size:?}, expected [batch, length]"),
            ));
        }
        if self.attention_mask.is_some() && self.documents.is_some() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "'attention_mask' and 'documents' are both given: give padding a document of its own",
            ));
        }
        Ok(())
    }

    /// True where there is a token, `[batch, length]`.
    pub(super) fn tokens(&self) -> Result<Option<Tensor>> {
        Ok(self.attention_mask.map(|mask| mask.f_to_kind(Kind::Bool)).transpose()?)
    }
}

impl<'a> From<&'a Tensor> for Inputs<'a> {
    fn from(ids: &'a Tensor) -> Self {
        Inputs::new(ids)
    }
}
