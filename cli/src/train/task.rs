//! A task: the data and the loss that the trainer works with.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use ln_tuning::recompute::{Recompute, Tape};
use ln_tuning::Optimizer;
use tch::{Device, Kind, TchError, Tensor};

use super::batches::Job;
use super::example::Example;

/// Makes batches, on threads ahead of the device.
pub trait Load: Send + Sync + 'static {
    type Inputs: Send + 'static;

    fn load(&self, job: &Job) -> Result<Batch<Self::Inputs>>;
}

/// A batch, on its way to the device since a worker sent it.
pub struct Batch<I> {
    pub inputs: I,
    /// On the device where the task's loss wants them.
    pub labels: Tensor,
    /// The number of targets that the loss is a mean over.
    pub targets: i64,
    /// Tokens, or images, that go through the model, padding apart.
    pub size: u64,
    /// The files and lines that it was made of.
    pub sources: String,
}

/// Scores by name; the first says which checkpoint is the best, by being low.
pub type Scores = Vec<(&'static str, f64)>;

pub trait Task {
    type Loader: Load;

    fn loader(&self) -> Arc<Self::Loader>;

    /// The lengths of the rows to train on: batches are made of rows of about the same.
    fn lengths(&self) -> Vec<u32>;

    /// The rows to evaluate on; 0 where there is nothing.
    fn eval_rows(&self) -> usize;

    /// The rows of the largest batch that there can be, and of further ones that show what this one does not.
    fn largest(&self, size: usize) -> Vec<Vec<usize>>;

    /// The reason why something that was chosen gets no gradient from these data, with the cure.
    fn idle(&self) -> Option<&'static str> {
        None
    }

    /// The summed loss of the batch, divided by `over`. Blocks are run through the tape.
    fn loss<'t>(
        &'t self,
        batch: &Of<Self>,
        over: i64,
        tape: &mut Tape<'t>,
    ) -> ln_tuning::Result<Tensor>;

    /// The tensors that a batch's loss depends on, for a step that is captured as a CUDA graph; or the reason why it is
    /// not. As many mean the same in all batches.
    fn graph_inputs<'b>(&self, batch: &'b Of<Self>) -> Result<Vec<&'b Tensor>, &'static str>;

    /// The summed loss of a batch like `like`, with these tensors in the place of its
    /// [`graph_inputs`](Self::graph_inputs). Nothing of it is read on the host.
    fn loss_of_inputs(&self, like: &Of<Self>, inputs: &[Tensor]) -> ln_tuning::Result<Tensor>;

    /// [`loss`](Self::loss) of each of the batches of a step.
    fn losses<'t>(
        &'t self,
        batches: &[Of<Self>],
        over: i64,
        tape: &mut Tape<'t>,
    ) -> ln_tuning::Result<Vec<Tensor>> {
        batches.iter().map(|batch| self.loss(batch, over, tape)).collect()
    }

    /// The room that a batch takes where it goes through the model together with those of other runs; or the reason why
    /// it goes alone.
    fn extent(&self, _batch: &Of<Self>) -> Result<Extent, &'static str> {
        Err("batches like these go through the model alone")
    }

    /// The losses of batches of several runs: of each list one pass, in which the rows of each batch use their own
    /// adapter. All have an [extent](Self::extent).
    fn losses_together<'t>(
        &'t self,
        _lists: &[Vec<OfRun<Self>>],
        _tape: &mut Tape<'t>,
    ) -> ln_tuning::Result<Vec<Vec<Tensor>>> {
        Ok(Vec::new())
    }

    /// True if all batches of a step go through a block of the model before the next one.
    fn goes_block_by_block(&self) -> bool {
        false
    }

    /// Numbers of each batch, from which [`scores`](Self::scores) follow.
    fn evaluate(
        &self,
        batches: &mut dyn Iterator<Item = Result<Of<Self>>>,
    ) -> Result<Vec<Vec<f64>>>;

    /// The scores of batches with these numbers.
    fn scores(&self, batches: &[Vec<f64>]) -> Result<Scores>;

    /// The unit of a batch's size.
    fn unit(&self) -> &'static str;

    /// Lines about the data.
    fn describe(&self) -> Vec<String>;

    /// A document or row as text, with what is learned of it.
    fn example(&self) -> Result<Example>;

    /// A number for the data.
    fn digest(&self) -> String;

    /// Writes the files that an adapter's directory should hold beside the adapter.
    fn add_files(&self, _adapter: &Path) -> Result<()> {
        Ok(())
    }
}

/// A batch's room in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub rows: u64,
    /// Places of each row.
    pub length: u64,
    /// Batches with the same number compute the same together as alone.
    pub like: i64,
}

/// A batch of one of several runs.
pub struct OfRun<'b, T: Task + ?Sized> {
    pub batch: &'b Of<T>,
    /// The number that its loss is divided by.
    pub over: i64,
    pub adapter: &'b str,
}

pub type Of<T> = Batch<<<T as Task>::Loader as Load>::Inputs>;

/// Adds the gradient of the batches' summed loss divided by `over`, and gives that loss: 0 without a batch.
pub fn backward<T: Task>(
    task: &T,
    batches: &[Of<T>],
    over: i64,
    recompute: Option<&Recompute>,
    optimizer: &mut Optimizer,
) -> Result<Tensor> {
    let mut losses = Vec::new();
    match recompute {
        _ if batches.is_empty() => (),
        Some(recompute) if task.goes_block_by_block() => {
            losses = optimizer
                .backward_recompute_many(recompute, |tape| task.losses(batches, over, tape))?;
        }
        Some(recompute) => {
            for batch in batches {
                losses.push(
                    optimizer.backward_recompute(recompute, |tape| task.loss(batch, over, tape))?,
                );
            }
        }
        None => {
            for batch in batches {
                let loss = task.loss(batch, over, &mut Tape::off())?;
                optimizer.backward(&loss)?;
                losses.push(loss.f_detach()?);
            }
        }
    }
    let mut losses = losses.into_iter();
    let Some(first) = losses.next() else { return Ok(Tensor::from(0_f32)) };
    Ok(losses.try_fold(first, |sum, loss| sum.f_add(&loss))?)
}

/// All numbers of tensors of any shapes and kinds, one after the other. The device is waited for once.
pub fn numbers<'t>(tensors: impl IntoIterator<Item = &'t Tensor>) -> Result<Vec<f64>> {
    let tensors: Vec<&Tensor> = tensors.into_iter().collect();
    // A rank without a row in a step has its loss on the CPU.
    let device = tensors.iter().map(|tensor| tensor.device()).find(|device| *device != Device::Cpu);
    let flat =
        |at: &usize| tensors[*at].f_to_device(device.unwrap_or(Device::Cpu))?.f_reshape([-1]);
    // Those of a kind become wide together: each operation is a launch.
    let kinds = tensors.iter().map(|tensor| tensor.f_kind()).collect::<Result<Vec<_>, _>>()?;
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|at| kinds[*at] as i32);
    let wide = |own: &[usize]| {
        let own = own.iter().map(flat).collect::<Result<Vec<_>, TchError>>()?;
        Tensor::f_cat(&own, 0)?.f_to_kind(Kind::Double)
    };
    let wide = order.chunk_by(|a, b| kinds[*a] == kinds[*b]).map(wide);
    let wide = wide.collect::<Result<Vec<_>, TchError>>()?;
    if wide.is_empty() {
        return Ok(Vec::new());
    }
    let all = Vec::<f64>::try_from(Tensor::f_cat(&wide, 0)?.f_to_device(Device::Cpu)?)?;
    let (mut all, mut numbers) = (all.into_iter(), vec![Vec::new(); tensors.len()]);
    for at in order {
        numbers[at] = all.by_ref().take(tensors[at].numel()).collect();
    }
    Ok(numbers.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_several_kinds_and_shapes_keep_their_order_and_value() {
        let third = || Tensor::from(1_f32 / 3.);
        let count = Tensor::from(1_i64 << 52);
        let all = [third(), count, Tensor::from_slice2(&[[1_f64, 2.], [3., -4.]]), third() * 2.];
        let expected = f64::from(1_f32 / 3.);
        let expected = [expected, (1_i64 << 52) as f64, 1., 2., 3., -4., 2. * expected];
        assert_eq!(numbers(&all).unwrap(), expected);
        assert!(numbers(&[]).unwrap().is_empty());
    }
}
