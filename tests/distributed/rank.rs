//! One rank of a group: the task that the environment names.

use std::sync::Arc;
use std::time::Duration;

use ln_tuning::distributed::ProcessGroup;

use crate::launch::{OUT, TASK};
use crate::{collectives, ddp, failures, torchrun, training};

/// Seconds that operations of a group take at most.
pub const TIMEOUT: &str = "LN_TUNING_TEST_TIMEOUT";

/// Joins the others.
pub fn join() -> ln_tuning::Result<Arc<ProcessGroup>> {
    let seconds = std::env::var(TIMEOUT).map_or(60., |seconds| seconds.parse().unwrap());
    ProcessGroup::from_env_with(Duration::from_secs_f64(seconds)).map(Arc::new)
}

/// Leaves what this rank has found.
pub fn leave(found: impl AsRef<[u8]>) {
    std::fs::write(std::env::var_os(OUT).unwrap(), found).unwrap();
}

/// No test of its own: the others start this program with it.
#[test]
fn of_a_group() {
    let Ok(task) = std::env::var(TASK) else { return };
    match task.split('-').next().unwrap() {
        "training" => training::of_one_rank(),
        "collectives" => collectives::of_one_rank(),
        "ddp" => ddp::of_one_rank(),
        "join" => failures::join_only(),
        "step" => failures::step(&task),
        "settings" => failures::settings(),
        "torchrun" => torchrun::of_one_rank(),
        other => panic!("there is no task {other}"),
    }
}
