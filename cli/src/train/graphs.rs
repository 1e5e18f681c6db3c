//! Steps as CUDA graphs (`cuda_graph`).

use anyhow::Result;
use ln_tuning::{GraphedStep, Optimizer};
use tch::Tensor;

use super::order::step_seed;
use super::settings::Settings;
use super::task::{Of, Task};

/// The most shapes of batches that have a graph: as many as rows of 2048 places have when they are padded to 64.
const MOST: usize = 32;

/// The steps of a run, replayed where they can be.
pub(super) struct Graphs {
    step: GraphedStep,
    steps: u64,
    replayed: u64,
    /// The reasons for steps without a graph that have been said.
    said: Vec<String>,
    /// One that has not.
    unsaid: Option<String>,
}

impl Graphs {
    /// None if the settings ask for none.
    pub fn new(settings: &Settings) -> Result<Option<Self>> {
        if !settings.cuda_graph {
            return Ok(None);
        }
        let mut step = GraphedStep::default().most_graphs(MOST);
        if let Some(max) = settings.clip_norm {
            step = step.clip_norm(max)?;
        }
        Ok(Some(Graphs { step, steps: 0, replayed: 0, said: Vec::new(), unsaid: None }))
    }

    /// [`update`](super::update::update) from one batch, on one rank; nothing if it is none for a graph.
    pub fn update<T: Task>(
        &mut self,
        task: &T,
        batch: &Of<T>,
        settings: &Settings,
        optimizer: &mut Optimizer,
        (step, factor): (u64, f64),
    ) -> Result<Option<[Tensor; 3]>> {
        self.steps += 1;
        let mut inputs = match task.graph_inputs(batch) {
            Ok(inputs) => inputs,
            Err(reason) => {
                self.hear(reason);
                return Ok(None);
            }
        };
        settings.set_rates(optimizer, factor)?;
        tch::manual_seed(step_seed(settings.seed, step, 0));
        let targets = Tensor::from(batch.targets.max(1) as f64);
        inputs.push(&targets);
        let stepped = self.step.run(optimizer, &inputs, |inputs| {
            let (targets, own) = inputs.split_last().unwrap_or((&targets, &[]));
            divided(&task.loss_of_inputs(batch, own)?, targets)
        })?;
        self.replayed += u64::from(stepped.replayed);
        if let Some(reason) = self.step.without_graph().map(str::to_owned) {
            self.hear(&reason);
        }
        Ok(Some([stepped.loss.shallow_clone(), stepped.grad_norm, stepped.loss]))
    }

    fn hear(&mut self, reason: &str) {
        if !self.said.iter().any(|said| said == reason) {
            self.said.push(reason.to_owned());
            self.unsaid = Some(format!("'cuda_graph': steps run one by one, since {reason}"));
        }
    }

    /// A line about steps without a graph, each once.
    pub fn unsaid(&mut self) -> Option<String> {
        self.unsaid.take()
    }

    /// The steps that were replayed, if any were.
    pub fn replayed(&self) -> Option<u64> {
        (self.replayed > 0).then_some(self.replayed)
    }

    /// A line for the end.
    pub fn report(&self) -> String {
        let Graphs { steps, replayed, .. } = self;
        let mut line = format!("{replayed} of {steps} steps were replayed as CUDA graphs");
        if self.said.is_empty() && replayed * 2 < *steps {
            line += ", from the third of each shape of batches on: a larger 'data.pad_to_multiple_of' makes fewer shapes";
        }
        line
    }
}

/// A sum divided by a scalar beside it, to the bit as by a number of the host: on CUDA, libtorch multiplies by the
/// inverse of that.
fn divided(sum: &Tensor, by: &Tensor) -> ln_tuning::Result<Tensor> {
    let by = by.f_to_kind(sum.f_kind()?)?;
    Ok(if sum.device().is_cuda() { sum.f_mul(&by.f_reciprocal()?)? } else { sum.f_div(&by)? })
}
