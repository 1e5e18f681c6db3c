//! A peer that is stopped or killed.

use std::thread::scope;
use std::time::{Duration, Instant};

use super::{
    lines, port, processes, refused, results, short, signal, variables, wait_until, well, Hosts,
};
use crate::program::Training;
use crate::resume::random;

#[test]
fn a_rank_that_is_stopped_ends_the_others_within_their_deadline() {
    let training = short().set(&["max_steps=100000", "out=stopped"]);
    let dir = training.dir.path();
    let port = port();
    scope(|scope| {
        let ranks = scope.spawn(|| {
            let hosts = Hosts::new(60).deadline(4);
            ["0", "1"]
                .iter()
                .fold(hosts, |hosts, rank| hosts.rank(&variables(rank, "2", &port), &training, &[]))
                .run()
                .unwrap()
        });
        wait_until(|| lines(&training, "stopped") >= 4);
        let stopped = processes(dir, 1)[0];
        signal("STOP", stopped);
        let begun = Instant::now();
        while !processes(dir, 0).is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(30), "rank 0 waits forever");
            std::thread::sleep(Duration::from_millis(20));
        }
        signal("KILL", stopped);
        let ended = ranks.join().unwrap();
        refused(&ended[..1], 60.);
        assert_eq!(ended[1].status, Some(-9));
    });
    let steps = training.checkpoints("stopped");
    assert!(!steps.is_empty() && training.path("stopped/checkpoints/step-4").exists());
}

/// Kills a rank at so many random instants under torchrun, which starts all ranks again.
fn kills(count: usize, seed: u64) {
    let settings = ["save_interval=1", "max_steps=60", "keep_last=2", "eval_interval=9"];
    let [whole, killed] = [0, 1].map(|_| short().set(&settings).set(&["data.eval_fraction=0.1"]));
    let restarts = format!("--max-restarts={count}");
    let run = |training: &Training| {
        let arguments = ["--standalone", "--nproc-per-node=2", &restarts];
        Hosts::new(400).torchrun(&arguments, training, &[]).run().unwrap()
    };
    let done = scope(|scope| {
        let undisturbed = scope.spawn(|| run(&whole));
        let run = scope.spawn(|| run(&killed));
        let mut state = seed;
        let mut done = 0;
        while done < count && !run.is_finished() {
            let before = lines(&killed, "out");
            let rank = (random(&mut state) % 2) as usize;
            // In the first instants of a run, while it starts, or among its steps, while it saves.
            let starts = random(&mut state).is_multiple_of(5);
            let found = || processes(killed.dir.path(), rank);
            wait_until(|| !found().is_empty() || run.is_finished());
            wait_until(|| starts || lines(&killed, "out") > before || run.is_finished());
            std::thread::sleep(Duration::from_micros(random(&mut state) % 20_000));
            let Some(process) = found().pop() else { continue };
            signal("KILL", process);
            done += usize::from(!run.is_finished());
            wait_until(|| !found().contains(&process));
        }
        well(&undisturbed.join().unwrap());
        well(&run.join().unwrap());
        done
    });
    assert!(done * 3 >= count * 2, "only {done} of {count} kills came before the end");
    assert!(results(&killed, "out") == results(&whole, "out"), "the adapters differ");
    for key in ["loss", "grad_norm", "eval_loss"] {
        assert_eq!(killed.series("out", key), whole.series("out", key), "{key}");
    }
    assert_eq!(files(&killed), files(&whole));
}

/// The names of all that a run left.
fn files(training: &Training) -> Vec<String> {
    let out = training.path("out");
    let mut folders = vec![out.clone()];
    let mut names = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            names.push(path.strip_prefix(&out).unwrap().to_str().unwrap().to_owned());
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    names.sort();
    names
}

#[test]
fn a_run_whose_ranks_are_killed_ends_as_one_whose_were_not() {
    kills(3, 7);
}

#[test]
#[ignore = "takes minutes: make distributed-kills"]
fn a_run_whose_ranks_are_killed_at_20_instants_ends_as_one_whose_were_not() {
    let seed = std::env::var("SEED").map_or(7, |seed| seed.parse().expect("SEED is a number"));
    kills(20, seed);
}
