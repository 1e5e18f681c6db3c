//! torch's own launcher, whose store outlives the processes that it starts again.

use ln_tuning::distributed::{ProcessGroup, ReduceOp};
use tch::Tensor;

use crate::common::run_python;
use crate::launch::{OUT, TASK};
use crate::rank::join;

pub fn of_one_rank() {
    let variable = |name: &str| std::env::var(name).unwrap();
    assert_eq!(variable("TORCHELASTIC_USE_AGENT_STORE"), "True");
    assert!(ProcessGroup::is_launched());
    let group = join().unwrap();
    assert_eq!(group.local_rank().to_string(), variable("LOCAL_RANK"));
    let mut sum = Tensor::from(group.rank() as i64 + 1);
    group.all_reduce(&mut sum, ReduceOp::Sum).unwrap();
    if variable("TORCHELASTIC_RESTART_COUNT") == "0" {
        // The first time, one rank fails, and the other hears of it.
        if group.rank() == 1 {
            std::process::exit(3);
        }
        group.barrier().unwrap_err();
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
    group.verify_equal([("restarts", variable("TORCHELASTIC_RESTART_COUNT").as_str())]).unwrap();
    let found = format!("{} of {}", sum.int64_value(&[]), variable("WORLD_SIZE"));
    std::fs::write(format!("{}-{}", variable(OUT), group.rank()), found).unwrap();
}

#[test]
fn torchrun_starts_the_ranks_and_starts_them_again() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let program = std::env::current_exe().unwrap();
    let variables = [
        format!("{TASK}=torchrun"),
        format!("{OUT}={}", out.display()),
        "OMP_NUM_THREADS=1".into(),
    ];
    let mut arguments: Vec<&str> = variables.iter().map(String::as_str).collect();
    arguments.extend(["--", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]);
    arguments.extend(["--monitor-interval", "0.1", "--no-python", program.to_str().unwrap()]);
    arguments.extend(["--exact", "rank::of_a_group", "--nocapture"]);
    run_python("torchrun.py", &arguments);
    for rank in 0..2 {
        let found = std::fs::read_to_string(format!("{}-{rank}", out.display())).unwrap();
        assert_eq!(found, "3 of 2");
    }
}
