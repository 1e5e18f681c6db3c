"""The steps of the two phases, those worth most first."""

import sys
from dataclasses import dataclass, field
from pathlib import Path


# Of the CPU.
SMALL_ROW = "step, bf16, long vocabulary"


@dataclass
class Places:
    """The folders of a run."""

    data: Path
    out: Path

    def __post_init__(self):
        self.unpacked = self.out / "unpacked"
        self.programs, self.packages = self.unpacked / "programs", self.unpacked / "packages"
        self.scratch = self.out / "scratch"

    def shape(self, name):
        """The model that the check of the shape leaves; a step that does not find it makes it."""
        return self.scratch / "check-shape" / "out" / "models" / f"shape-{name}"

    def log(self, name):
        return self.out / f"{name}.log"


@dataclass
class Step:
    name: str
    about: str
    # Seconds after which the step is ended, with all that it has started.
    limit: int
    command: list
    environment: dict = field(default_factory=dict)
    # A later step uses what this one leaves in its folder.
    keeps: bool = False
    # None of its times is looked at: with --together it runs beside others.
    untimed: bool = False


def phase_a(places, options):
    device = "cpu" if options.cpu else "cuda"
    small = options.cpu or options.dry_run
    dry = ["--dry-run"] if options.dry_run else []
    # A few are enough to try the bundle. The runtime without a GPU has no cuDNN, and so no convolutions.
    tiny = ["decoders:llama,gpt2"] if small else ["decoders", "encoders", "seq2seq", "vision", "vit"]
    attention = "flash,math" if small else "cudnn,flash,math"
    shape = "small" if small else "3b"

    def python(script, *arguments):
        return [sys.executable, str(places.data / "gpu" / script), *map(str, arguments)]

    # Tests judge numbers: without kernels that compute they run on the CPU.
    real = {"LD_PRELOAD": ""} if options.dry_run else {}

    def tests(program, *names):
        return [str(places.programs / program), *names, "--test-threads=1", "--nocapture"]

    check = ["--device", device, "--attention", attention, *dry]
    model = places.shape(shape)
    fused = [str(places.programs / "gpu_check"), "fused", "--device", device, *dry]
    fused += ["--small", "--steps", "1", "--kind", "bfloat16"] if small else []
    return [
        Step("device", "Tests of finding and loading CUDA.", 60, tests("device-tests", "--skip", "downstream"),
             untimed=True),
        Step("check-models", "Tiny models of every family: ours beside PEFT, both against f64.", 170,
             python("check.py", "out", "--only", *tiny, *check), untimed=True),
        Step("fine-tunings", "The program trains language models and classifiers in bf16, with CUDA graphs and without.", 150,
             tests("program-tests", "best_device"), real, untimed=True),
        Step("check-shape", f"Four layers of the {shape} shape: ours beside PEFT, both against f64.", 120,
             python("check.py", "out", "--only", "--shape", shape, *check), keeps=True, untimed=True),
        Step("fused", "The fused functions: each beside libtorch's operators, and the step with and without them.", 90, fused),
        Step("generation", "Greedy text at batch 1: the same tokens in f32, and tokens per second in bf16.", 60,
             python("generation.py", model, "--shape", shape, "--device", device, *dry)),
        # The runtime without a GPU computes nothing: there the ranks are those of the CPU.
        Step("two-ranks", "Two ranks of torchrun train what one process trains: by NCCL, or by Gloo.", 170,
             python("two_ranks.py", model, "--shape", shape, "--device", "cpu" if small else device,
                    *(["--steps", 3, "--kinds", "float32"] if small else [])), real),
        Step("kill", "A run killed again and again ends as one that was not.", 120,
             tests("program-tests", "resume::a_run_killed"), {"LN_TUNING_TEST_DEVICE": "cpu" if real else device} | real,
             untimed=True),
    ]


def phase_b(places, options):
    device = "cpu" if options.cpu else "cuda"
    small = options.cpu or options.dry_run
    shape = "small" if small else "3b"
    # They make their models where the next finds them.
    train = [str(places.programs / "train_vs_peft"), "--out", str(places.scratch / "train-models")]
    rows = {"train-4x768": "4 x 768", "train-1x128": "1 x 128", "train-varying": "varying", "train-packed": "packed 4 x 2048"}
    # To try the bundle, a small row of the CPU takes their place.
    train += ["--pairs", "1", "--no-compile"] if small else ["--pairs", "15", "--seconds", "30", "--patience", "180"]
    script, library = places.data / "gpu" / "step_profile.py", places.programs / "libln_tuning_gpu.so"
    profile = [sys.executable, str(script), str(places.shape(shape)), "--library", str(library)]
    profile += ["--shape", shape, "--device", device]
    train = [
        Step(name, f"Training steps beside PEFT, the row '{row}' of train_vs_peft.", 300,
             [*train, "--rows", SMALL_ROW if small else f"CUDA, 3B, bf16, {row}", "--json", str(places.out / f"{name}.jsonl")])
        for name, row in rows.items()
    ]
    # Without kernels, memory keeps what it holds first: the base must be the same at each look.
    held = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "COUNTING_FILL": "60"}
    # The CPU has a benchmark of its own.
    mixed = [str(places.programs / "mixed_batches"), "--out", str(places.out), *(["quick"] if small else [])]
    graph = [str(places.programs / "gpu_check"), "graph", "--unfused", "--device", device, *(["--small"] if small else [])]
    return [
        *train[:2],
        Step("graph", "Steps of 1 x 128 as a CUDA graph and without one, with fused functions and without: equal losses, and times.", 200,
             [*graph, *(["--dry-run"] if options.dry_run else [])]),
        Step("mixed", "Rows of several adapters beside one adapter for all, and beside LoRA of PEFT.", 120,
             [*mixed, *([] if options.cpu else ["cuda"])], held if options.dry_run else {}),
        Step("profile", "The kernels of a training step, ours and PEFT's, by torch.profiler.", 120, profile),
        *train[2:],
        Step("loading", "Loading a checkpoint of 1 GB beside transformers.", 120,
             [str(places.programs / "loading_vs_transformers"), "--device", device]),
    ]


PHASES = {"A": phase_a, "B": phase_b}
