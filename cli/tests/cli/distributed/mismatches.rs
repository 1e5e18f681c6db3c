//! Ranks that do not belong together.

use std::thread::scope;

use super::{port, refused, short, variables, Hosts};

/// Settings of rank 0 and of rank 1, the number of ranks that rank 1 was told instead of 2, and words of both errors.
type Mismatch = ([&'static str; 2], &'static str, &'static [&'static str]);

const MISMATCHES: &[Mismatch] = &[
    (["optimizer.lr=0.1", "optimizer.lr=0.2"], "2", &["optimizer.lr", "0.1", "0.2"]),
    (["data.train=train.txt", "data.train=other.txt"], "2", &["data"]),
    (["seed=3", "seed=3"], "3", &["WORLD_SIZE 3", "rank 0 has 2"]),
];

#[test]
fn ranks_that_do_not_belong_together_all_end_in_seconds_and_say_why() {
    let training = short();
    training.write("other.txt", &training.read("train.txt").replace("lazy", "idle"));
    scope(|scope| {
        for (number, (settings, world, words)) in MISMATCHES.iter().enumerate() {
            let training = &training;
            scope.spawn(move || {
                let (port, out) = (port(), format!("out=mismatch-{number}"));
                let hosts = Hosts::new(60)
                    .rank(&variables("0", "2", &port), training, &[settings[0], &out])
                    .rank(&variables("1", world, &port), training, &[settings[1], &out]);
                let ended = hosts.run().unwrap();
                refused(&ended, 30.);
                let said = |err: &str| words.iter().all(|word| err.contains(word));
                assert!(ended.iter().all(|rank| said(&rank.err)), "{settings:?}: {ended:#?}");
                assert!(!training.path(&format!("mismatch-{number}/adapter")).exists());
            });
        }
    });
}
