//! CUDA graphs where there are none: without the feature `kernels`, and on other systems than Linux.

use std::convert::Infallible;

use tch::Device;

use crate::error::{refuse, Result};

/// There is none.
#[derive(Debug)]
pub(crate) struct SideStream(Infallible);

/// There is none.
#[derive(Debug)]
pub(crate) struct Graph(Infallible);

impl SideStream {
    pub(crate) fn new(_device: Device) -> Result<Self> {
        refuse!(
            Unsupported,
            "this program is built without CUDA graphs: they need Linux, and the feature 'kernels' of ln-tuning"
        );
    }

    pub(crate) fn run<T>(&self, _f: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.0 {}
    }

    pub(crate) fn capture<T>(
        &self,
        _beside: Option<&Graph>,
        _f: impl FnOnce() -> Result<T>,
    ) -> Result<(Graph, T)> {
        match self.0 {}
    }
}

impl Graph {
    pub(crate) fn replay(&self) -> Result<()> {
        match self.0 {}
    }
}
