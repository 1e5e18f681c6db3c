//! Ranks that do not belong together.

use std::thread::scope;

use super::{port, refused, short, variables, Hosts};

/// Settings of rank 0 and of rank 1, the numbers of ranks that they were told, and words of the error.
type Mismatch = ([&'static str; 2], [&'static str; 2], &'static [&'static str]);

const MISMATCHES: &[Mismatch] = &[
    (["optimizer.lr=0.1", "optimizer.lr=0.2"], ["2", "2"], &["optimizer.lr", "0.1", "0.2"]),
    (["seed=1", "seed=2"], ["2", "2"], &["seed"]),
    (["kind=f32", "kind=bf16"], ["2", "2"], &["kind"]),
    (
        ["adapter.target_modules=null", "adapter.target_modules=[norm]"],
        ["2", "2"],
        &["target_modules"],
    ),
    (["data.train=train.txt", "data.train=other.txt"], ["2", "2"], &["data"]),
    (["seed=3", "seed=3"], ["2", "1"], &["WORLD_SIZE"]),
    (["seed=3", "seed=3"], ["1", "2"], &["WORLD_SIZE"]),
    (["seed=3", "seed=3"], ["2", "3"], &["WORLD_SIZE"]),
    (["seed=3", "seed=3"], ["3", "2"], &["WORLD_SIZE"]),
];

#[test]
fn ranks_that_do_not_belong_together_all_end_in_seconds_and_say_why() {
    let training = short();
    training.write("other.txt", &training.read("train.txt").replace("lazy", "idle"));
    scope(|scope| {
        for (number, (settings, worlds, words)) in MISMATCHES.iter().enumerate() {
            let training = &training;
            scope.spawn(move || {
                let (port, out) = (port(), format!("out=mismatch-{number}"));
                let hosts = Hosts::new(60)
                    .deadline(8)
                    .rank(&variables("0", worlds[0], &port), training, &[&out, settings[0]])
                    .rank(&variables("1", worlds[1], &port), training, &[&out, settings[1]]);
                let ended = hosts.run().unwrap();
                refused(&ended, 30.);
                let said = |err: &str| words.iter().all(|word| err.contains(word));
                assert!(ended.iter().all(|rank| said(&rank.err)), "{settings:?}: {ended:#?}");
                assert!(!training.path(&format!("mismatch-{number}/adapter")).exists());
            });
        }
    });
}
