//! The ways to a product of matrices.

/// A library that multiplies matrices, or loops of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Way {
    #[default]
    Libtorch = 0,
    /// A convolution of one pixel: libtorch gives it to oneDNN.
    Convolution = 1,
    /// `csrc/products`.
    Blocks = 2,
}
