//! `cuda_graph`: steps that are replayed compute what steps one by one do.

use crate::counting::{Counts, Gpu};
use crate::cuda::{bert, run, vit, OLDER};
use crate::program::{best_device, texts, Training};
use crate::{model, pictures_train, training};

const GRAPH: &str = "cuda_graph=true";
const STEPS: &str = "max_steps=16";

/// Everything that a run leaves which computing decides on.
#[derive(PartialEq)]
struct Left {
    figures: Vec<Vec<(u64, f64)>>,
    files: Vec<Vec<u8>>,
}

fn left(training: &Training, out: &str) -> Left {
    let keys = ["loss", "grad_norm", "lr", "tokens", "eval_loss", "skipped_steps"];
    let bytes = |name: &str| std::fs::read(training.path(out).join(name)).unwrap();
    let files = ["adapter/adapter_model.safetensors", "checkpoints/step-16/optimizer.safetensors"];
    Left {
        figures: keys.iter().map(|key| training.series(out, key)).collect(),
        files: files.map(bytes).into(),
    }
}

/// The same run with a graph and without; gives what the one with a graph prints.
fn compare(training: &Training, more: &[&str]) -> String {
    let all = [more, &[STEPS, "save_interval=8"]].concat();
    training.run(&[&all[..], &["out=plain"]].concat());
    let printed = training.run(&[&all[..], &["out=graphed", GRAPH]].concat());
    let [plain, graphed] = ["plain", "graphed"].map(|out| left(training, out));
    assert_eq!(graphed.figures[0].len(), 16, "{more:?}");
    assert_eq!(graphed.figures, plain.figures, "{more:?}");
    assert!(graphed.files == plain.files, "{more:?}: weights or moments differ");
    printed
}

/// The number of replays that the last lines tell.
fn replays(printed: &str) -> u64 {
    let words = " steps were replayed as CUDA graphs";
    let line = printed.lines().find(|line| line.contains(words));
    let line = line.unwrap_or_else(|| panic!("{printed}"));
    line.split(' ').next().and_then(|number| number.parse().ok()).unwrap()
}

#[test]
fn on_the_best_device_a_run_with_cuda_graphs_has_the_bits_of_one_without_and_so_when_it_resumes() {
    let device = best_device("steps as CUDA graphs");
    let settings = ["kind=bf16", "deterministic=true", "data.eval_fraction=0.2", "eval_interval=8"];
    let text = training().set(&settings).set(&["data.pad_to_multiple_of=64", "epochs=9", device]);
    let classes = bert().set(&settings[..2]).set(&["data.pad_to_multiple_of=64", device]);
    for (training, more) in [(&text, "data.packing=false"), (&classes, "clip_norm=null")] {
        let printed = compare(training, &[more]);
        let reason = "'cuda_graph': steps run one by one, since the model is on Cpu";
        if device == "device=cuda" {
            assert!(replays(&printed) >= 10 && !printed.contains("one by one"), "{printed}");
        } else {
            assert_eq!(replays(&printed), 0, "{printed}");
            assert_eq!(printed.matches(reason).count(), 1, "{printed}");
        }
    }
    // As if it had been killed, and without graphs up to there.
    let whole = left(&text, "plain");
    for out in ["graphed", "plain"] {
        std::fs::remove_dir_all(text.path(out).join("checkpoints/step-16")).unwrap();
        std::fs::remove_dir_all(text.path(out).join("adapter")).unwrap();
        let out_is = format!("out={out}");
        let resumed = [&out_is, "data.packing=false", STEPS, "save_interval=8", GRAPH];
        let printed = text.run(&resumed);
        assert!(printed.contains("resuming after step 8 of 16"), "{printed}");
        assert!(left(&text, out) == whole, "'{out}' has other results");
    }
}

#[test]
fn losses_and_weights_are_those_of_a_run_without_for_each_kind_of_step() {
    let dropping = Training::new(&model("gpt2"));
    dropping.write("train.txt", &crate::text(40));
    let dropping =
        dropping.set(&["data.train=train.txt", "data.max_length=48", "batch_size=4", "threads=1"]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Dropout, rates of their own, and no clipping.
            let rates = "optimizer.lr={default: 0.01, final: 0.002}";
            let more = ["device=cpu", "kind=f32", "clip_norm=null", rates, "data.packing=true"];
            compare(&dropping, &more);
        });
        // A loss scale that is found while training.
        compare(&training(), &["kind=f16", "data.packing=true", "precision=model"]);
        compare(&vit(), &["kind=bf16", "optimizer.weight_decay=0.1"]);
        let more = ["data.packing=false", "adapter.exclude_modules=.*vision.*"];
        let printed = compare(&pictures_train::training("llava"), &more);
        let reason = "a model that sees counts the tokens of pictures on the host";
        assert_eq!(printed.matches(reason).count(), 1, "{printed}");
    });
}

/// The work of 40 steps beyond those that make the graphs.
fn later_steps(gpu: Gpu, training: &Training, more: &[&str]) -> Option<(Counts, Counts, String)> {
    let all = ["device=cuda", "save_interval=100", "epochs=100", GRAPH];
    let counts = |steps: &str| {
        let own = [format!("out=after{steps}"), format!("max_steps={steps}")];
        let [out, steps] = &own;
        run(gpu, training.command(&[&all[..], more, &[out, steps]].concat()))
    };
    let (_, few) = counts("20")?;
    let (printed, many) = counts("60")?;
    Some((few, many, printed))
}

#[test]
fn a_replayed_step_of_the_trainer_launches_nothing_one_by_one() {
    let packed = || training().set(&["data.packing=true", "batch_size=2"]);
    for (gpu, training, more) in [
        (Gpu::default(), packed(), vec!["kind=bf16"]),
        (Gpu::default(), training(), vec!["data.packing=false", "kind=f16"]),
        (Gpu::default(), bert(), vec!["kind=bf16", "clip_norm=null"]),
        (OLDER, vit(), vec!["batch_size=4"]),
    ] {
        let Some((few, many, printed)) = later_steps(gpu, &training, &more) else { return };
        assert!(!printed.contains("one by one"), "{printed}");
        let steps = replays(&printed);
        let extra = |of: &dyn Fn(&Counts) -> u64| of(&many).saturating_sub(of(&few));
        let what = format!("{more:?}: {printed}");
        assert_eq!(extra(&|c| c.calls_with("cudaGraphLaunch")), 40, "{what}");
        assert!(steps > 45, "{what}");
        assert_eq!(extra(&|c| c.products), 0, "{what}");
        // Figures are read once a second, in a few launches.
        let launched = extra(&|c| c.launches);
        assert!(launched < 40, "{launched} in 40 steps, {what}: {:?}", many.kernels);
        assert_eq!(extra(&|c| c.pageable_copies), 0, "{what}");
    }
}

#[test]
fn what_has_no_graph_is_refused_by_the_name_of_the_setting() {
    for (more, words) in [
        ("accumulation=2", "'accumulation' 2: a graph is one batch and one update"),
        ("base=int8", "'base' int8"),
        ("base=nf4", "'base' nf4"),
        ("base=streamed", "'base' streamed"),
        ("checkpointing=all", "'checkpointing' is set"),
        ("checkpointing=2", "'checkpointing' is set"),
        ("tasks=[{name: a}, {name: b}]", "'cuda_graph' is for a run alone"),
        ("tasks=[{name: a, cuda_graph: true}]", "'cuda_graph' is of all tasks"),
    ] {
        let training = training();
        let error = training.refusal(&[GRAPH, more]);
        assert!(error.contains("'cuda_graph'") && error.contains(words), "{more}: {error}");
        assert!(!training.path("out").exists());
    }
    let training = training();
    for (name, size, sweep, words) in [
        ("two ranks", "2", "", "there are 2 ranks"),
        ("a sweep", "1", "seed=0,1", "'cuda_graph' is for a run alone"),
        ("swept itself", "1", "cuda_graph=true,false", "it is for a run alone"),
    ] {
        let mut command = training.command(&[GRAPH]);
        command.arg("--dry-run").env("RANK", "0").env("WORLD_SIZE", size);
        if !sweep.is_empty() {
            command.args(["--sweep", sweep]);
        }
        let (out, err) = texts(&command.output().unwrap());
        assert!(err.starts_with("error: ") && err.contains(words), "{name}: {out}{err}");
    }
}
