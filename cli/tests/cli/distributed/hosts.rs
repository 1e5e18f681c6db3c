//! Two hosts and what is between them.

use std::thread::scope;

use serde_json::json;

use super::{lines, refused, results, short, wait_until, well, Hosts};
use crate::program::Training;

/// The arguments of torchrun on the first or the second host.
fn node(rank: &str) -> [&str; 5] {
    ["--nnodes=2", rank, "--nproc-per-node=1", "--master-addr=10.77.0.1", "--master-port=29500"]
}

const NODES: [&str; 2] = ["--node-rank=0", "--node-rank=1"];

/// A training on both hosts, in one directory.
fn both(
    training: &Training,
    link: serde_json::Value,
    (limit, deadline): (u64, u64),
    more: &[&str],
) -> Hosts {
    let hosts = Hosts::new(limit).link(link).deadline(deadline);
    NODES.iter().fold(hosts, |hosts, rank| hosts.torchrun(&node(rank), training, more))
}

#[test]
fn two_hosts_end_as_two_processes_of_one_though_packets_are_late_and_lost() {
    let training = short();
    let bad = json!({ "delay": 0.01, "jitter": 0.01, "loss": 0.03, "seed": 5 });
    let ended = scope(|scope| {
        let one = scope.spawn(|| {
            let arguments = ["--standalone", "--nproc-per-node=2"];
            Hosts::new(60).torchrun(&arguments, &training, &["out=one"]).run()
        });
        let two = scope.spawn(|| both(&training, bad, (60, 40), &["out=two"]).run());
        well(&one.join().unwrap().unwrap());
        two.join().unwrap()
    });
    let Some(ended) = ended else { return };
    well(&ended);
    assert!(results(&training, "one") == results(&training, "two"), "the adapters differ");
    for key in ["loss", "grad_norm"] {
        assert_eq!(training.series("one", key), training.series("two", key), "{key}");
    }
}

#[test]
fn a_link_that_is_cut_ends_the_ranks_of_both_hosts_and_the_run_goes_on_later() {
    let training = short().set(&["save_interval=1"]);
    let one = |out: &str| {
        let arguments = ["--standalone", "--nproc-per-node=2"];
        well(&Hosts::new(60).torchrun(&arguments, &training, &[out]).run().unwrap());
    };
    let ended = scope(|scope| {
        scope.spawn(|| one("out=whole"));
        let slow = json!({ "delay": 0.02 });
        let run = scope.spawn(|| both(&training, slow, (60, 5), &["out=apart"]).run());
        wait_until(|| lines(&training, "apart") >= 6 || run.is_finished());
        training.write("cut", "");
        run.join().unwrap()
    });
    let Some(ended) = ended else { return };
    refused(&ended, 59.);
    assert!(!training.path("apart/adapter").exists());
    one("out=apart");
    assert!(results(&training, "apart") == results(&training, "whole"), "the adapters differ");
}
