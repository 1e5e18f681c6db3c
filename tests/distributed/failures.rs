//! Groups that cannot come about, settings that do not fit together, and ranks that end: an error on every other rank,
//! in time, and nothing changed.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use ln_tuning::{AdamW, ErrorKind, LnTuningConfig, LnTuningModel, Optimizer};
use tch::{Kind, Tensor};

use crate::launch::{self, free_port, group, Rank};
use crate::net::{batch, optimizer, rows, Net};
use crate::rank::{join, leave, TIMEOUT};

/// Joins, stays for a moment, and leaves the error if there is one.
pub fn join_only() {
    let begun = Instant::now();
    let joined = join();
    assert!(begun.elapsed() < Duration::from_secs(30), "{joined:?}");
    match joined {
        Ok(group) => {
            std::thread::sleep(Duration::from_secs(1));
            leave(format!("joined as {} of {}", group.rank(), group.world_size()));
        }
        Err(error) => leave(format!("{error:?}")),
    }
}

/// A listener that answers nothing, or what nobody asks a store for.
fn stranger(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if answer.is_empty() {
                kept.push(stream);
            } else {
                let _ = stream.read(&mut [0; 64]);
                let _ = stream.write_all(answer);
            }
        }
    });
    port
}

#[test]
fn a_group_that_cannot_come_about_is_an_error_on_every_rank_in_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let ranks = |name: &str, port: u16, all: &[(usize, usize)], others: &[(&str, &str)]| {
        let dir = dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        let each = all.iter().enumerate();
        let each =
            each.map(|(at, own)| launch::rank(&format!("join-{at}"), *own, port, others, &dir));
        each.collect::<Vec<Rank>>()
    };
    let short = [(TIMEOUT, "2")];
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let nowhere = [(TIMEOUT, "1"), ("MASTER_ADDR", "no-such-host.invalid")];
    let malformed = [("RANK", "one"), ("MASTER_ADDR", "")];
    // The words that each group must say on every rank.
    let cases: Vec<(Vec<Rank>, &str)> = vec![
        (
            ranks("sizes", free_port(), &[(0, 2), (1, 3)], &[]),
            "Distributed: the processes do not make a group: rank 1 has WORLD_SIZE 3, but rank 0 has 2",
        ),
        (
            ranks("twice", free_port(), &[(0, 3), (1, 3), (1, 3)], &[]),
            "Distributed: the processes do not make a group: two processes have RANK 1",
        ),
        (
            ranks("two that are first", free_port(), &[(0, 2), (0, 2)], &[]),
            "Distributed: the processes do not make a group: two processes have RANK 0",
        ),
        (
            ranks("absent", free_port(), &[(0, 3), (1, 3)], &short),
            "rank 2 of 3 did not come in time",
        ),
        (
            ranks("without the first", free_port(), &[(1, 2)], &short),
            "Distributed: rank 1 finds nobody at 127.0.0.1:",
        ),
        (
            ranks("silence", stranger(b""), &[(1, 2)], &short),
            "Distributed: rank 1 waits for 127.0.0.1:",
        ),
        (ranks("another service", stranger(b"HTTP/1.1 400 Bad Request\r\n\r\n"), &[(1, 2)], &short), "Distributed: rank 1 "),
        (
            ranks("taken", taken.local_addr().unwrap().port(), &[(0, 2)], &[]),
            "Distributed: rank 0 cannot listen at MASTER_PORT",
        ),
        (
            ranks("nowhere", free_port(), &[(1, 2)], &nowhere),
            "Distributed: rank 1 does not find the host 'no-such-host.invalid'",
        ),
        (
            ranks("malformed", free_port(), &[(0, 2)], &malformed),
            "InvalidConfig: the environment gives this process no place among others: not set: MASTER_ADDR; RANK is 'one'",
        ),
    ];
    // This one goes on alone: rank 0 knows of no other.
    let mut alone = ranks("alone", free_port(), &[(0, 1), (1, 2)], &[]);
    let second = alone.pop().unwrap().succeed();
    let first = alone.pop().unwrap().succeed();
    assert_eq!(first.found, "joined as 0 of 1");
    assert!(
        second.found.contains("rank 0 has begun without this process")
            || second.found.contains("rank 1 has WORLD_SIZE 2, but rank 0 has 1"),
        "{}",
        second.found
    );
    for (ranks, words) in cases {
        for rank in ranks {
            let ended = rank.succeed();
            assert!(
                ended.found.contains(words),
                "expected {words}\nfound {}\n{}",
                ended.found,
                ended.text
            );
        }
    }
}

/// All that a step may change.
fn state(tuned: &LnTuningModel, opt: &mut Optimizer) -> Vec<(String, Tensor)> {
    let gradients = opt.gradients().unwrap().into_iter();
    let gradients = gradients.map(|(name, gradient)| (name, gradient.unwrap_or_default()));
    let mut all = tuned.state_dict("default").unwrap();
    all.extend(opt.state_dict().unwrap());
    all.extend(gradients);
    all
}

/// Trains; before the third step one rank ends, or stops.
pub fn step(task: &str) {
    let group = join().unwrap();
    let own = group.rank();
    let net = Net::new(Kind::Float, 0.);
    let tuned = net.attach(false);
    let mut opt = optimizer(&tuned);
    opt.set_process_group(group.clone()).unwrap();
    let loss = |step| net.mean(&rows(&batch(step, false), own, 3));
    for step in 0..2 {
        opt.backward_step(&loss(step)).unwrap();
    }
    let victim = if task == "step-first" { 0 } else { 2 };
    if own == victim && task == "step-stopped" {
        std::process::Command::new("kill")
            .args(["-STOP", &std::process::id().to_string()])
            .status()
            .unwrap();
        // However late the signal comes, this one does not go on.
        std::thread::sleep(Duration::from_secs(100));
    } else if own == victim {
        std::process::abort();
    }
    opt.zero_grad().unwrap();
    opt.backward(&loss(2)).unwrap();
    let before = state(&tuned, &mut opt);
    let begun = Instant::now();
    let error = opt.step().err().unwrap_or_else(|| panic!("{task}: rank {own} has stepped alone"));
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!(error.kind(), ErrorKind::Distributed);
    assert_eq!(state(&tuned, &mut opt), before);
    let again = opt.step().unwrap_err();
    assert_eq!(again.kind(), ErrorKind::InvalidState, "{again}");
    assert!(again.to_string().contains("of no use any more"), "{again}");
    assert_eq!(state(&tuned, &mut opt), before);
    assert!(group.verify_equal([("nothing", "")]).is_err());
    leave(format!("{seconds:.2} s: {error}"));
}

#[test]
fn a_rank_that_ends_or_stops_is_an_error_on_the_others_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let start = |task: &str| {
        let port = free_port();
        let seconds = if task == "step-stopped" { "3" } else { "60" };
        let rank = |own| launch::rank(task, (own, 3), port, &[(TIMEOUT, seconds)], dir.path());
        [0, 1, 2].map(rank)
    };
    let all = ["step-killed", "step-stopped", "step-first"].map(|task| (task, start(task)));
    for (task, ranks) in all {
        let victim = if task == "step-first" { 0 } else { 2 };
        let mut stopped = None;
        for (own, rank) in ranks.into_iter().enumerate() {
            if own == victim {
                // The test's end kills it.
                stopped = Some(rank);
                continue;
            }
            let ended = rank.succeed();
            let (seconds, error) = ended.found.split_once(" s: ").unwrap();
            let most = if task == "step-stopped" { 8. } else { 5. };
            assert!(seconds.parse::<f64>().unwrap() < most, "{task}: {}", ended.found);
            // Rank 0 may have ended before the other one fails, and its store with it.
            let word = if own == 0 { "no word from rank 2" } else { "no word from" };
            assert!(error.contains(word), "{task}: {error}");
        }
        drop(stopped);
    }
}

/// Two ranks whose settings differ in one thing each time, and then in nothing.
pub fn settings() {
    let group = join().unwrap();
    let other = group.rank() == 1;
    let set = |opt: &mut Optimizer, words: &str| {
        let error = opt.set_process_group(group.clone()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Distributed);
        let error = error.to_string();
        assert!(error.contains(words), "{words}: {error}");
    };
    let net = || Net::new(Kind::Float, 0.);
    let config = |modules: &[&str]| LnTuningConfig::default().target_modules(modules.to_vec());
    {
        let net = net();
        let modules: &[&str] = if other { &["norm1", "norm2"] } else { &["norm2"] };
        let tuned = LnTuningModel::new(&net.vs, config(modules)).unwrap();
        set(&mut optimizer(&tuned), "rank 1 has number of weights 32, but rank 0 has 20");
    }
    {
        let net = Net::new(if other { Kind::BFloat16 } else { Kind::Float }, 0.);
        set(&mut optimizer(&net.attach(false)), "rank 1 has names, shapes and kinds of weights");
    }
    {
        let net = Net::new(Kind::Float, if other { 1. } else { 0. });
        set(&mut optimizer(&net.attach(false)), "rank 1 has frozen weights");
    }
    let net = net();
    let tuned = net.attach(false);
    let rate = if other { 0.02 } else { 0.01 };
    set(&mut tuned.optimizer(AdamW::default(), rate).unwrap(), "rank 1 has optimizer settings");
    let mut opt = optimizer(&tuned);
    opt.set_accumulation(if other { 3 } else { 2 }).unwrap();
    set(&mut opt, "rank 1 has accumulation 3, but rank 0 has 2");
    opt.set_accumulation(1).unwrap();
    opt.set_loss_scale(if other { 8. } else { 4. }).unwrap();
    set(&mut opt, "rank 1 has loss scale 8, but rank 0 has 4");
    opt.set_loss_scale(1.).unwrap();
    if other {
        opt.backward_step(&net.mean(&batch(0, false))).unwrap();
    }
    set(&mut opt, "rank 1 has optimizer state");
    if !other {
        opt.backward_step(&net.mean(&batch(0, false))).unwrap();
    }
    // The weights differ, and become those of rank 0.
    if other {
        tch::no_grad(|| {
            let _ = net.vs.variables()["norm1.weight"].shallow_clone().fill_(7.);
        });
    }
    opt.set_process_group(group.clone()).unwrap();
    let weight = net.vs.variables()["norm1.weight"].detach();
    let all = group.all_gather(&weight).unwrap();
    assert_eq!(all[0], all[1]);
    assert!(all[0].ne(7.).any().int64_value(&[]) == 1);
    // Only one of them weighs its loss: neither steps.
    opt.zero_grad().unwrap();
    let loss = net.mean(&batch(0, false));
    opt.backward(&loss).unwrap();
    let before = state(&tuned, &mut opt);
    let error = if other { opt.all_reduce(&loss, 7).map(drop) } else { opt.step() };
    let error = error.unwrap_err().to_string();
    assert!(error.contains("1 of 2 ranks call `all_reduce`"), "{error}");
    assert_eq!(state(&tuned, &mut opt), before);
    let (_, tokens) = opt.all_reduce(&loss, 7).unwrap();
    assert_eq!(tokens, 14);
    let error = opt.all_reduce(&loss, 7).unwrap_err();
    assert!(error.to_string().contains("reduced already"), "{error}");
    opt.step().unwrap();
}

#[test]
fn settings_that_differ_are_named_on_both_ranks() {
    let dir = tempfile::tempdir().unwrap();
    group("settings", 2, dir.path()).into_iter().for_each(|rank| drop(rank.succeed()));
}
