//! The program on CUDA, under the runtime that counts: nothing is computed, but everything is asked for.

use std::process::{Command, Output};
use std::time::Instant;

use crate::counting::{Counts, Gpu};
use crate::distributed::port;
use crate::program::{program, text, texts, Training};
use crate::{classifier, model, training};

const PARTS: [&str; 4] =
    ["device=cuda", "save_interval=3", "eval_interval=6", "data.eval_fraction=0.2"];

/// Images train in bf16 there, since its convolutions are then libtorch's own: the runtime has no cuDNN.
pub const OLDER: Gpu = Gpu { sm: 75, devices: 1, memory: 80 << 30, fill: None, computes: false };

/// The command with these devices; `None` where there is no counting runtime.
fn on(gpu: Gpu, mut command: Command) -> Option<Command> {
    gpu.give_to(&mut command).then_some(command)
}

/// Runs the command to its end, which leaves only the program's own lines.
pub fn run(gpu: Gpu, mut command: Command) -> Option<(String, Counts)> {
    let report = tempfile::NamedTempFile::new().unwrap();
    command.env("COUNTING_REPORT", report.path());
    // The preflight looks for gradients that are not zero.
    let output = on(Gpu { fill: Some(0x3c), ..gpu }, command)?.output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success() && err.is_empty(), "{}\n{out}\n{err}", output.status);
    Some((out, Counts::read(report.path())))
}

fn refused(gpu: Gpu, command: Command) -> Option<String> {
    let Output { status, stderr, .. } = on(gpu, command)?.output().unwrap();
    let err = String::from_utf8(stderr).unwrap();
    assert!(
        status.code() == Some(1) && err.lines().count() == 1 && err.starts_with("error: "),
        "{err}"
    );
    Some(err)
}

/// A whole run, and one that goes on from the last checkpoint but one.
fn trains_and_resumes(gpu: Gpu, training: &Training, more: &[&str]) -> Option<()> {
    let all = [&PARTS[..], &["max_steps=9"], more].concat();
    let (out, _) = run(gpu, training.command(&all))?;
    assert!(out.contains("on Cuda(0)"), "{out}");
    assert_eq!(training.checkpoints("out"), [6, 9]);
    std::fs::remove_dir_all(training.path("out/checkpoints/step-9")).unwrap();
    std::fs::remove_dir_all(training.path("out/adapter")).unwrap();
    let (out, _) = run(gpu, training.command(&all))?;
    assert!(out.contains("resuming after step 6 of 9"), "{out}");
    assert_eq!(training.checkpoints("out"), [6, 9]);
    assert_eq!(training.series("out", "loss").len(), 9);
    assert!(training.path("out/adapter/adapter_model.safetensors").exists());
    Some(())
}

pub fn bert() -> Training {
    let training = classifier::training("bert").set(&["data.train=train.csv"]);
    training.write("train.csv", &classifier::csv(&classifier::rows(40), ["old", "wise"]));
    training
}

pub fn vit() -> Training {
    let training = classifier::training("vit").set(&["data.train=images"]);
    classifier::images(&training);
    training
}

#[test]
fn a_language_model_trains_resumes_merges_and_generates() {
    let training = training();
    let Some(()) = trains_and_resumes(
        Gpu::default(),
        &training,
        &["accumulation=2", "deterministic=true", "tf32=true"],
    ) else {
        return;
    };
    let (base, adapter, merged) =
        (model("llama"), training.path("out/adapter"), training.path("merged"));
    let mut merge = program();
    merge.args([
        "merge",
        "--base",
        text(&base),
        "--adapter",
        text(&adapter),
        "--out",
        text(&merged),
    ]);
    run(Gpu::default(), merge).unwrap();
    let mut generate = program();
    let named = format!("mine={}", adapter.display());
    generate.args([
        "generate",
        "--model",
        text(&merged),
        "--adapter",
        &named,
        "--prompt",
        "a stitch",
    ]);
    generate.args(["--max-new-tokens", "5", "--device", "cuda"]);
    let output = on(Gpu::default(), generate).unwrap().output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success() && err.lines().count() == 1, "{out}{err}");
}

#[test]
fn classifiers_of_texts_and_images_train_and_resume() {
    let Some(()) = trains_and_resumes(Gpu::default(), &bert(), &["kind=f16", "deterministic=true"])
    else {
        return;
    };
    trains_and_resumes(OLDER, &vit(), &["checkpointing=all", "deterministic=true"]).unwrap();
}

#[test]
fn a_gpu_that_is_older_than_bf16_trains_in_it_and_in_f16() {
    for kind in ["kind=bf16", "kind=f16"] {
        let training = training();
        let command = training.command(&["device=cuda", "max_steps=2", kind]);
        let Some((out, _)) = run(OLDER, command) else { return };
        assert!(out.contains("on Cuda(0)"), "{out}");
    }
}

#[test]
fn a_step_copies_from_pinned_memory_only_and_waits_for_nothing() {
    let more = ["device=cuda", "clip_norm=1.0", "save_interval=100", "epochs=100"];
    for (gpu, training, settings) in [
        (Gpu::default(), training(), vec!["data.packing=true"]),
        (Gpu::default(), training(), vec!["data.packing=false", "kind=f16", "checkpointing=2"]),
        (Gpu::default(), bert(), vec!["kind=bf16"]),
        (OLDER, vit(), vec![]),
    ] {
        let counts = |steps: &str| {
            let out = format!("out=after{steps}");
            let steps = format!("max_steps={steps}");
            let all = [&more[..], &settings, &[&out, &steps]].concat();
            Some(run(gpu, training.command(&all))?.1)
        };
        let Some(few) = counts("5") else { return };
        let begun = Instant::now();
        let many = counts("45").unwrap();
        let extra = |of: fn(&Counts) -> u64| of(&many).saturating_sub(of(&few));
        assert_eq!(extra(|c| c.pageable_copies), 0, "{settings:?}");
        assert!(extra(|c| c.pinned_copies) >= 40, "{settings:?}: batches are sent");
        let batched = |c: &Counts| -> u64 {
            let calls = c.calls.iter().filter(|(name, _)| name.contains("SgemmStridedBatched"));
            calls.map(|(_, calls)| calls).sum()
        };
        if gpu.sm == 90 {
            assert_eq!(extra(batched), 0, "{settings:?}: attention has a kernel of its own");
        }
        // Figures are read once a second.
        let (waits, seconds) = (extra(|c| c.synchronisations), begun.elapsed().as_secs());
        assert!(waits <= 2 + seconds, "{settings:?}: 40 steps wait {waits} times in {seconds} s");
    }
}

#[test]
fn all_is_on_the_device_that_is_asked_for() {
    let two = Gpu { devices: 2, ..Gpu::default() };
    for (training, more) in [(training(), "data.packing=true"), (bert(), "kind=f32")] {
        let command =
            training.command(&["device=cuda:1", "max_steps=4", "data.eval_fraction=0.2", more]);
        let Some((out, counts)) = run(two, command) else { return };
        assert!(out.contains("on Cuda(1)"), "{out}");
        assert_eq!((counts.devices[0].peak, counts.devices[0].blocks), (0, 0));
        assert!(counts.devices[1].peak > 0);
    }
    let refusal = |device: &str| refused(two, training().command(&[&format!("device={device}")]));
    let Some(error) = refusal("cuda:2") else { return };
    assert!(error.contains("'device' is 'cuda:2', expected cpu or cuda:0 to cuda:1"), "{error}");
    assert!(refusal("cuda:x").unwrap().contains("expected auto, cpu, cuda or cuda:N"));
}

#[test]
fn memory_that_is_not_enough_is_an_error_that_names_the_settings() {
    let training = training();
    // Not enough for the model, and not enough for a step.
    for memory in [1_000_000, 20_000_000] {
        let command = training.command(&["device=cuda"]);
        let Some(error) = refused(Gpu { memory, ..Gpu::default() }, command) else { return };
        for part in
            ["memory is not enough", "cuda:0", "'checkpointing'", "'batch_size'", "'accumulation'"]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!error.contains("Optimizer"), "{error}");
        assert!(!training.path("out").exists());
    }
    let mut generate = program();
    let model = model("llama");
    generate.args(["generate", "--model", text(&model), "--prompt", "a stitch"]);
    let error = refused(Gpu { memory: 1_000_000, ..Gpu::default() }, generate).unwrap();
    assert!(
        error.contains("memory is not enough") && error.contains("--max-new-tokens"),
        "{error}"
    );
    assert!(!error.contains("Optimizer"), "{error}");
}

/// A little less than a run takes: it ends where it asks for the last bit.
#[test]
fn memory_that_ends_while_training_costs_nothing_that_was_saved() {
    let training = training();
    let settings = ["device=cuda", "max_steps=9", "save_interval=1"];
    let whole = training.command(&[&settings[..], &["out=whole"]].concat());
    let Some((_, counts)) = run(Gpu::default(), whole) else { return };
    for less in [1_000, 8_000] {
        let memory = counts.devices[0].peak - less;
        let gpu = Gpu { memory, fill: Some(0x3c), ..Gpu::default() };
        let output = on(gpu, training.command(&settings)).unwrap().output().unwrap();
        let (_, err) = texts(&output);
        let ended = err.is_empty() && output.status.success();
        assert!(ended || err.starts_with("error: memory is not enough"), "{err}");
        for entry in std::fs::read_dir(training.path("out/checkpoints")).into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(name.starts_with("step-"), "{name} is not a whole checkpoint");
        }
    }
    let command = training.command(&[&settings[..], &["checkpointing=all"]].concat());
    run(Gpu::default(), command).unwrap();
    assert_eq!(training.series("out", "loss").len(), 9);
}

#[test]
fn each_process_of_a_machine_has_a_gpu_of_its_own() {
    let training = training();
    let of_second = |gpu: Gpu, device: &str| {
        let mut command = training.command(&[device, "max_steps=1"]);
        command.arg("--dry-run");
        for (name, value) in
            [("RANK", "0"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")]
        {
            command.env(name, value);
        }
        (gpu, command)
    };
    let two = Gpu { devices: 2, ..Gpu::default() };
    for (device, expected) in [
        ("device=cuda", "on Cuda(1)"),
        ("device=auto", "on Cuda(1)"),
        ("device=cuda:0", "on Cuda(0)"),
    ] {
        let (gpu, command) = of_second(two, device);
        let Some((out, _)) = run(gpu, command) else { return };
        assert!(out.contains(expected), "{device}: {out}");
    }
    let (gpu, command) = of_second(Gpu::default(), "device=cuda");
    let error = refused(gpu, command).unwrap();
    for words in ["there are 2 processes on this machine", "this one sees 1", "cuda:0"] {
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn two_ranks_with_a_gpu_each_sum_their_gradients_once_in_a_step_by_nccl() {
    let (training, port) = (training(), port());
    let gpus = Gpu { devices: 2, fill: Some(0x3c), ..Gpu::default() };
    let mut ranks = Vec::new();
    for rank in ["0", "1"] {
        let report = tempfile::NamedTempFile::new().unwrap();
        let settings = ["device=cuda", "max_steps=5", "accumulation=3", "clip_norm=1.0"];
        let mut command = training.command(&settings);
        command.args(["--ddp-timeout", "60"]).env("COUNTING_REPORT", report.path());
        command.env("LN_TUNING_NCCL", "1").env("MASTER_ADDR", "127.0.0.1");
        for (name, value) in [
            ("RANK", rank),
            ("LOCAL_RANK", rank),
            ("WORLD_SIZE", "2"),
            ("MASTER_PORT", port.as_str()),
        ] {
            command.env(name, value);
        }
        let Some(mut command) = on(gpus, command) else { return };
        ranks.push((command.spawn().unwrap(), report));
    }
    for (rank, (child, report)) in ranks.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        let (out, err) = texts(&output);
        assert!(output.status.success() && err.is_empty(), "{}\n{out}\n{err}", output.status);
        let counts = Counts::read(report.path());
        let sums = counts.calls.iter().filter(|(name, _)| name.starts_with("ncclAllReduce"));
        let sums: Vec<(&str, u64)> = sums.map(|(name, calls)| (name.as_str(), *calls)).collect();
        assert!(matches!(sums[..], [(name, 5)] if name.contains(" f32 ")), "{sums:?}");
        assert!(counts.devices[rank].peak > 0);
        assert_eq!(counts.devices[1 - rank].peak, 0, "rank {rank} uses the GPU of the other");
    }
}
