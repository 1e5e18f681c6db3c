//! Launchers that are set wrong, and ports where something else listens.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::scope;

use super::{port, refused, short, variables, well, Hosts};

/// Variables that differ from those of rank 0 of 2, or are not there, and words of the error.
type Fault = (&'static [(&'static str, Option<&'static str>)], &'static [&'static str]);

const FAULTS: &[Fault] = &[
    (&[("RANK", None)], &["RANK is not set", "torchrun"]),
    (&[("WORLD_SIZE", None)], &["WORLD_SIZE is not set", "torchrun"]),
    (&[("MASTER_ADDR", None)], &["not set: MASTER_ADDR", "torchrun"]),
    (&[("RANK", Some("2"))], &["RANK is 2", "WORLD_SIZE is 2"]),
    (&[("MASTER_PORT", Some("ssh"))], &["MASTER_PORT is 'ssh'"]),
    (&[("MASTER_ADDR", Some("no-such-host.invalid"))], &["the host 'no-such-host.invalid'"]),
];

#[test]
fn a_launcher_that_is_set_wrong_is_refused_in_seconds_and_the_variable_is_named() {
    let training = short();
    scope(|scope| {
        for (faults, words) in FAULTS {
            let training = &training;
            scope.spawn(move || {
                let port = port();
                let mut variables = variables("0", "2", &port).to_vec();
                for (name, value) in *faults {
                    variables.retain(|(other, _)| other != name);
                    variables.extend(value.map(|value| (*name, value)));
                }
                let ended =
                    Hosts::new(60).deadline(4).rank(&variables, training, &[]).run().unwrap();
                refused(&ended, 20.);
                let err = &ended[0].err;
                assert!(words.iter().all(|word| err.contains(word)), "{faults:?}: {err}");
            });
        }
    });
    assert!(!training.path("out").exists(), "something was written");
}

/// A listener on the port of the launcher: it answers with these words, or never.
const LISTENERS: [(&str, &str); 2] = [("silent", ""), ("ssh", "SSH-2.0-OpenSSH_9.9\r\n")];

#[test]
fn a_port_where_something_else_listens_is_named_by_all_ranks_in_seconds() {
    let training = short();
    scope(|scope| {
        for (what, words) in LISTENERS {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port().to_string();
            let training = &training;
            // Ends with the tests.
            std::thread::spawn(move || {
                let mut held = Vec::new();
                for mut stream in listener.incoming().flatten() {
                    if !words.is_empty() {
                        let _ = stream.write_all(words.as_bytes());
                        let _ = stream.read(&mut [0; 100]);
                    }
                    held.push(stream);
                }
            });
            scope.spawn(move || {
                let hosts = Hosts::new(60).deadline(4);
                let hosts = ["0", "1"].iter().fold(hosts, |hosts, rank| {
                    hosts.rank(&variables(rank, "2", &port), training, &[])
                });
                let ended = hosts.run().unwrap();
                refused(&ended, 30.);
                assert!(ended.iter().all(|rank| rank.err.contains(&port)), "{what}: {ended:#?}");
            });
        }
    });
}

/// Places of two processes, and words of both errors.
const STRANGERS: [([[&str; 2]; 2], &str); 2] = [
    ([["0", "1"], ["1", "2"]], "WORLD_SIZE"),
    ([["0", "2"], ["0", "2"]], "two processes have RANK 0"),
];

#[test]
fn a_process_that_takes_itself_for_the_only_or_the_first_one_ends_with_the_others_in_seconds() {
    let training = short().set(&["max_steps=1000000"]);
    scope(|scope| {
        for (number, (places, words)) in STRANGERS.iter().enumerate() {
            let training = &training;
            scope.spawn(move || {
                let (port, out) = (port(), format!("out=strangers-{number}"));
                let hosts = places.iter().fold(Hosts::new(60), |hosts, [rank, world]| {
                    hosts.rank(&variables(rank, world, &port), training, &[&out])
                });
                let ended = hosts.run().unwrap();
                refused(&ended, 50.);
                assert!(ended.iter().all(|rank| rank.err.contains(words)), "{ended:#?}");
            });
        }
    });
}

#[test]
fn many_tasks_of_slurm_without_ranks_are_warned_and_only_one_trains_into_a_folder() {
    let training = short();
    let slurm = |rank| [("SLURM_PROCID", rank), ("SLURM_NTASKS", "2")];
    let hosts = Hosts::new(60).rank(&slurm("0"), &training, &[]).rank(&slurm("1"), &training, &[]);
    let mut ended = hosts.run().unwrap();
    ended.sort_by_key(|task| task.status);
    well(&ended[..1]);
    refused(&ended[1..], 60.);
    assert!(ended[1].err.contains("trains into 'out'"), "{ended:#?}");
    for task in &ended {
        let words = "RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec";
        assert!(task.err.contains("warning: ") && task.err.contains(words), "{ended:#?}");
    }
    assert!(training.path("out/adapter").exists());
}
