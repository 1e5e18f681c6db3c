//! The way in which runs use the model: rows of several together, where that is possible and faster, or one run after
//! the other.

use anyhow::{ensure, Context, Result};
use ln_tuning::{natural_cmp, ErrorKind, LnTuningModel, Optimizer};
use tch::nn::VarStore;
use tch::Device;

use super::groups::groups;
use super::members::{alike, Member, Several, Work};
use super::together::{backward, most};
use crate::train::batches::Job;
use crate::train::task::{Extent, Load, Of, OfRun, Task};

pub(super) struct Way {
    /// Of each run.
    pub optimizers: Vec<Optimizer>,
    /// The reason why no rows of several runs go through the model together, if there is one.
    pub alone: Option<String>,
}

impl Way {
    pub fn of<T: Task, D>(
        several: &Several<D>,
        work: &Work<T>,
        adapters: &[String],
        vs: &VarStore,
        tuned: &mut LnTuningModel,
    ) -> Result<Self> {
        let alone = match apart(several).or_else(|| more_than_vectors(vs, tuned)) {
            Some(reason) => reason,
            None => match by_name(several, adapters, tuned)? {
                Ok(mut optimizers) => match trial(several, work, adapters, vs, &mut optimizers)? {
                    Some(reason) => reason,
                    None => return Ok(Way { optimizers, alone: None }),
                },
                Err(reason) => reason,
            },
        };
        let optimizers = adapters.iter().zip(&several.members).map(|(adapter, member)| {
            tuned.set_adapter(adapter)?;
            member.run.common.optimizer(tuned).with_context(|| member.name.clone())
        });
        Ok(Way { optimizers: optimizers.collect::<Result<_>>()?, alone: Some(alone) })
    }
}

/// The reason in the settings, if there is one.
fn apart<D>(several: &Several<D>) -> Option<String> {
    let scale = |member: &Member<D>| {
        (member.run.common.scales_dynamically(), member.run.common.loss_scale())
    };
    let first = scale(&several.members[0]);
    if several.members.len() < 2 {
        return Some("there is no other".to_owned());
    }
    if several.exact {
        return Some("each ends to the bit as it would alone".to_owned());
    }
    let differ = first.0 || several.members.iter().any(|member| scale(member) != first);
    differ.then(|| "each has a loss scale of its own".to_owned())
}

/// The optimisers of adapters that rows name, or the reason why there are none.
fn by_name<D>(
    several: &Several<D>,
    adapters: &[String],
    tuned: &LnTuningModel,
) -> Result<Result<Vec<Optimizer>, String>> {
    let mut optimizers = Vec::with_capacity(adapters.len());
    for (adapter, member) in adapters.iter().zip(&several.members) {
        match member.run.common.optimizer_for(tuned, adapter) {
            Ok(optimizer) => optimizers.push(optimizer),
            Err(error) if is_unsupported(&error) => {
                return Ok(Err(format!("{}", error.root_cause())));
            }
            Err(error) => return Err(error.context(member.name.clone())),
        }
    }
    Ok(Ok(optimizers))
}

/// The reason in what trains: heads and other matrices compute the rows of each run by themselves, which gains nothing.
fn more_than_vectors(vs: &VarStore, tuned: &LnTuningModel) -> Option<String> {
    let paths: Vec<String> =
        tuned.layer_status().into_iter().map(|layer| format!("{}.", layer.name)).collect();
    let matrices = vs.variables().into_iter().filter(|(name, tensor)| {
        tensor.dim() != 1 && paths.iter().any(|path| name.starts_with(path.as_str()))
    });
    let first = matrices.map(|(name, _)| name).min_by(|a, b| natural_cmp(a, b))?;
    Some(format!("'{first}' trains, and only vectors, such as weights of norms, gain by rows of several runs"))
}

fn is_unsupported(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<ln_tuning::Error>().map(ln_tuning::Error::kind);
    kind == Some(ErrorKind::Unsupported)
}

/// Lets rows of several runs go through the model together, which changes nothing: on a CPU the least that shows whether
/// it can, elsewhere as much as ever will, so that there is memory for it. Gives the reason, if that cannot be, or if a
/// run has enough rows of its own.
fn trial<T: Task, D>(
    several: &Several<D>,
    work: &Work<T>,
    adapters: &[String],
    vs: &VarStore,
    optimizers: &mut [Optimizer],
) -> Result<Option<String>> {
    let (runs, most) = (0..adapters.len(), most(vs.device()));
    let size = |run: usize| several.members[run].run.common.batch_size;
    let task = |run: usize| &work.tasks[work.of[run]];
    let (numbers, firsts) = alike(runs.clone().map(|run| (work.of[run], size(run))));
    let load = |rows: &dyn Fn(usize) -> Vec<usize>| {
        let batches = firsts
            .iter()
            .map(|run| task(*run).loader().load(&Job { eval: false, rows: rows(*run) }));
        batches.collect::<Result<Vec<_>>>()
    };
    let shortest = |run: usize, count: usize| {
        let mut rows: Vec<(u32, usize)> = task(run).lengths().into_iter().zip(0..).collect();
        rows.sort_unstable();
        rows.into_iter().take(count).map(|(_, row)| row).collect::<Vec<usize>>()
    };
    let empty = work.tasks.iter().any(|task| task.lengths().is_empty());
    ensure!(!empty, "there is nothing to train on: the data is empty");
    let mut reason = "each has as many tokens as are computed fast";
    let mut extents = |batches: &[Of<T>]| -> Vec<Vec<Extent>> {
        let extent = |run: usize| match task(run).extent(&batches[numbers[run]]) {
            Ok(extent) => vec![extent],
            Err(alone) => {
                reason = alone;
                Vec::new()
            }
        };
        runs.clone().map(extent).collect()
    };
    let mut group_of = |batches: &[Of<T>]| {
        let extents = extents(batches);
        let places = |run: &usize| extents[*run][0].rows * extents[*run][0].length;
        let groups = groups(&extents, most).into_iter().filter(|group| group.len() > 1);
        groups.max_by_key(|group| group.iter().map(places).sum::<u64>())
    };
    let mut batches = load(&|run| shortest(run, size(run)))?;
    let Some(mut group) = group_of(&batches) else {
        return Ok(Some(reason.to_owned()));
    };
    if vs.device() == Device::Cpu {
        batches = load(&|run| shortest(run, 1))?;
        group.truncate(2);
    } else {
        let largest = |run: usize| task(run).largest(size(run)).swap_remove(0);
        let largest = load(&largest)?;
        if let Some(larger) = group_of(&largest) {
            (batches, group) = (largest, larger);
        }
    }
    let list = group.iter().map(|run| {
        let batch = &batches[numbers[*run]];
        OfRun { batch, over: batch.targets.max(1), adapter: &adapters[*run] }
    });
    let list: Vec<OfRun<T>> = list.collect();
    let recompute = several.members[0].run.common.recompute()?;
    let own = optimizers.iter_mut().zip(runs);
    let own = own.filter_map(|(optimizer, run)| group.contains(&run).then_some(optimizer));
    let mut own: Vec<&mut Optimizer> = own.collect();
    let tried = backward(task(group[0]), &[list], recompute, own.iter_mut().map(|o| &mut **o));
    own.into_iter().try_for_each(Optimizer::zero_grad)?;
    match tried {
        Ok(_) => Ok(None),
        Err(error) if is_unsupported(&error) => Ok(Some(format!("{}", error.root_cause()))),
        Err(error) => Err(error),
    }
}
