//! The processes that train together, as an optimiser knows them.

#[cfg(feature = "distributed")]
use std::sync::Arc;

#[cfg(feature = "distributed")]
use crate::distributed::ProcessGroup;

/// The processes that train together.
#[derive(Debug, Default)]
pub(super) struct Ranks {
    #[cfg(feature = "distributed")]
    pub(super) group: Option<Arc<ProcessGroup>>,
    /// True if the gradients are those of all processes.
    #[cfg(feature = "distributed")]
    pub(super) reduced: bool,
    /// The optimisers that reduced at once the last time, as a digest.
    #[cfg(feature = "distributed")]
    pub(super) set: String,
}

impl Ranks {
    /// The gradients are those of this process again.
    pub(super) fn renew(&mut self) {
        #[cfg(feature = "distributed")]
        {
            self.reduced = false;
        }
    }
}
