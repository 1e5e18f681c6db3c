//! The ranks of a run: the processes that torchrun, or another launcher that sets RANK and WORLD_SIZE, has started for
//! it. Without a launcher there is one.

mod agreement;
mod directory;
#[cfg(distributed)]
mod guard;
mod launcher;
mod rank;

pub use agreement::SaidElsewhere;
pub use directory::Directory;
pub use launcher::alone_among;
pub use rank::Ranks;
