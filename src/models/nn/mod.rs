//! The parts that models are made of. They take numbers, and know no model's configuration.

mod activation;
mod attention;
mod block;
mod cache;
mod choices;
mod context;
mod head_norm;
mod linear;
mod mask;
mod mlp;
mod norm;
#[cfg(target_os = "linux")]
mod order;
mod rope;
mod rope_tables;
mod row_groups;
mod rows;
mod run;
mod scores;
mod sites;
#[cfg(target_os = "linux")]
mod streamed;
#[cfg(not(target_os = "linux"))]
#[path = "streamed_elsewhere.rs"]
mod streamed;
mod table;
mod tied;
mod weight;
mod weights;

pub(in crate::models) use activation::Activation;
pub(in crate::models) use attention::{Attention, Qkv, Rotation};
pub(in crate::models) use block::{stream, Across, Block, Branch, Flow, Guard};
pub(in crate::models) use cache::Cache;
pub(in crate::models) use context::Context;
pub(in crate::models) use head_norm::{HeadNorm, QkNorm};
pub(in crate::models) use linear::Linear;
pub(in crate::models) use mask::{counted, Mask, Places};
pub(in crate::models) use mlp::{dropped, Inner, Mlp};
pub(in crate::models) use norm::{Norm, NormKind};
pub(in crate::models) use rope::{powers, Beyond, Rope};
pub(in crate::models) use rope_tables::RopeTables;
pub(in crate::models) use rows::{Entered, Rows};
pub(in crate::models) use run::{run, run_all, run_batches, run_to, Through};
pub(in crate::models) use scores::{capped, Scores};
pub(in crate::models) use sites::Sites;
pub(in crate::models) use streamed::{Matrix, Stay};
pub(in crate::models) use table::Table;
pub(in crate::models) use tied::Tied;
pub(in crate::models) use weight::Weight;
pub(in crate::models) use weights::is_below;
pub use weights::Weights;
