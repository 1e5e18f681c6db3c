//! The parts that models are made of. They take numbers, and know no model's configuration.

pub(in crate::models) mod activation;
pub(in crate::models) mod attention;
pub(in crate::models) mod block;
pub(in crate::models) mod cache;
pub(in crate::models) mod context;
pub(in crate::models) mod head_norm;
pub(in crate::models) mod linear;
pub(in crate::models) mod mask;
pub(in crate::models) mod mlp;
pub(in crate::models) mod norm;
pub(in crate::models) mod rope;
pub(crate) mod weights;
