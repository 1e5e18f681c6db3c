//! All ranks end if one does, by a signal or an error.

use std::time::{Duration, Instant};

use tch::Tensor;

use crate::program::texts;
use crate::ranks::{ended, language, printed, start};

#[test]
fn a_signal_to_one_rank_ends_all_after_the_same_step_with_a_checkpoint() {
    let training = language();
    let more = ["epochs=100", "save_interval=1000", "eval_interval=1000", "max_steps=400"];
    let training = training.set(&more);
    let ranks = start(&training, 2, |_| Vec::new());
    let begun = Instant::now();
    let lines = || {
        let text = std::fs::read_to_string(training.path("out/metrics.jsonl"));
        text.unwrap_or_default().lines().count()
    };
    while lines() < 3 && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let id = ranks[1].id().to_string();
    let sent = std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap();
    assert!(sent.success());
    let outputs = ended(ranks);
    let printed = printed(outputs);
    let step = *training.checkpoints("out").last().expect("a checkpoint");
    assert!(printed.contains(&format!("stopped after step {step} of 400")), "{printed}");
    assert_eq!(training.series("out", "loss").last().unwrap().0, step);
}

#[test]
fn an_error_of_one_rank_ends_all_and_an_error_of_all_is_said_once() {
    let training = language().set(&["max_steps=400"]);
    training.write("bad.jsonl", "{\"text\": \"a\"");
    // Another base with the same configuration, such as a version that was trained on.
    let (base, other) = (crate::model("llama"), training.path("other"));
    std::fs::create_dir(&other).unwrap();
    for file in std::fs::read_dir(base).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), other.join(file.file_name())).unwrap();
    }
    let weights = other.join("model.safetensors");
    let mut tensors = Tensor::read_safetensors(&weights).unwrap();
    let (_, tensor) = tensors.iter_mut().find(|(name, _)| name.contains("up_proj")).unwrap();
    *tensor = &*tensor * 1.01;
    Tensor::write_safetensors(&tensors, &weights).unwrap();
    // A folder is of one run at a time.
    let count = std::cell::Cell::new(0);
    let out = || {
        count.set(count.get() + 1);
        format!("out=out-{}", count.get())
    };
    let of_second = |setting: &'static str| {
        let out = out();
        move |rank: usize| {
            let own = (rank == 1).then(|| setting.to_owned());
            [out.clone()].into_iter().chain(own).collect()
        }
    };
    let of_all = |setting: &'static str| {
        let out = out();
        move |_| vec![out.clone(), setting.to_owned()]
    };
    let begun = Instant::now();
    // Beside each other.
    let runs = [
        (start(&training, 2, of_second("data.train=bad.jsonl")), "rank 1: ", "bad lines in"),
        (start(&training, 2, of_second("clip_norm=-1")), "rank 1: ", "'clip_norm' is -1"),
        (start(&training, 2, of_second("optimizer.lr=0.5")), "rank 1: ", "on rank 0"),
        (start(&training, 2, of_all("data.train=bad.jsonl")), "rank 0: ", "bad lines in"),
        (start(&training, 2, of_second("model=other")), "rank 0: ", "rank 1 has frozen weights"),
        (start(&training, 5, of_all("seed=0")), "rank 0: ", "expected a multiple of 5"),
    ];
    for (number, (ranks, first, words)) in runs.into_iter().enumerate() {
        let errors: Vec<String> = ended(ranks)
            .iter()
            .map(|output| {
                assert_eq!(output.status.code(), Some(1), "{words}");
                texts(output).1
            })
            .collect();
        let said: Vec<&String> = errors.iter().filter(|error| error.contains(words)).collect();
        assert!(said.iter().any(|error| error.contains(first)), "{words}: {errors:?}");
        if number < 3 {
            // The other one ends as well, and says why.
            assert!(errors[0].contains("rank 0: stopped, since rank 1 failed"), "{errors:?}");
            assert_eq!(said.len(), 2, "{errors:?}");
        } else {
            assert_eq!(said.len(), 1, "{errors:?}");
            assert!(errors[1..].iter().all(String::is_empty), "{errors:?}");
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    for run in 1..=count.get() {
        assert!(!training.path(&format!("out-{run}")).exists(), "a trace of run {run}");
    }
}
