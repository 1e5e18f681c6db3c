//! What an example brings to the trainer.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use ln_tuning::Optimizer;
use tch::Tensor;

/// Makes batches, on threads ahead of the device.
pub trait Load: Send + Sync + 'static {
    /// What a batch is made of.
    type Job: Clone + Send + 'static;
    type Batch: Batch + Send + 'static;

    fn load(&self, job: &Self::Job) -> Result<Self::Batch>;
}

pub trait Batch {
    /// How many targets the loss is a mean over.
    fn targets(&self) -> i64;

    /// How many tokens, or images, go through the model, padding apart.
    fn size(&self) -> u64;

    /// The files and lines that it was made of.
    fn sources(&self) -> String;
}

/// Scores by name; the first says which checkpoint is the best, by being low.
pub type Scores = Vec<(&'static str, f64)>;

pub trait Task {
    type Loader: Load;

    fn loader(&self) -> Arc<Self::Loader>;

    /// The batches of an epoch in their order; always as many.
    fn jobs(&self, epoch: u64) -> Vec<Job<Self>>;

    /// The batches of an evaluation; none where there is nothing to evaluate on.
    fn evaluation(&self) -> Vec<Job<Self>>;

    /// The largest batch that there will be.
    fn largest(&self) -> Option<Job<Self>>;

    /// Adds the gradient of the batch's summed loss divided by `over`, and gives that share of the loss.
    fn backward(&self, batch: &Of<Self>, over: i64, optimizer: &mut Optimizer) -> Result<Tensor>;

    fn evaluate(&self, batches: &mut dyn Iterator<Item = Result<Of<Self>>>) -> Result<Scores>;

    /// What `tokens` are called in this task.
    fn unit(&self) -> &'static str;

    /// Lines for the user to read before the first step.
    fn describe(&self) -> Vec<String>;

    /// A number for the data.
    fn digest(&self) -> String;

    /// Writes what an adapter's directory should hold beside the adapter.
    fn add_files(&self, adapter: &Path) -> Result<()>;
}

pub type Job<T> = <<T as Task>::Loader as Load>::Job;
pub type Of<T> = <<T as Task>::Loader as Load>::Batch;
