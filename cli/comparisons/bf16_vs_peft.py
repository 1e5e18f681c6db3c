"""LN tuning of a bf16 model at the settings of PEFT's own benchmark, by `ln-tuning train` and by PEFT, side by side.

`python bf16_vs_peft.py --binary target/release/ln-tuning --out DIR [--steps N] [--base-steps N]`

Makes a small Llama, trains it on documentation strings of torch and numpy, stores it in bf16, and lets both tune its
norms to those of sympy: AdamW with lr 1e-4 and weight decay 0.1, cosine schedule, clipping at 1.0; the same model, rows,
order and batches. Prints both curves and writes bf16.svg and bf16.json to DIR.
"""

import argparse
import ast
import json
import subprocess
import sysconfig
import time
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from peft import LNTuningConfig, get_peft_model  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
LR, WEIGHT_DECAY, CLIP, BATCH, LENGTH = 1e-4, 0.1, 1.0, 4, 96


def strings(package, count):
    """The first documentation strings of a package, in the order of its files."""
    found = []
    for path in sorted((Path(sysconfig.get_paths()["purelib"]) / package).rglob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                text = " ".join((ast.get_docstring(node) or "").split())[:400]
                if len(text) >= 80 and text not in found:
                    found.append(text)
        if len(found) >= count:
            break
    return found[:count]


def make_base(directory, texts, steps):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2048, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")
    fast.save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=None, eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    rows = [row(fast, text)[:LENGTH] for text in texts]
    for step in range(steps):
        start = step * 16 % (len(rows) - 16)
        loss = model(**batch(rows[start : start + 16])).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            print(f"base, step {step}: loss {loss:.3f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(directory)


def row(tokenizer, text):
    return tokenizer(text)["input_ids"] + [0]


def batch(rows):
    longest = max(map(len, rows))
    padded = lambda fill: torch.tensor([r + [fill] * (longest - len(r)) for r in rows])  # noqa: E731
    mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows])
    return {"input_ids": padded(0), "labels": padded(-100), "attention_mask": mask}


def peft(directory, train, evaluation, steps, interval):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    model = get_peft_model(model, LNTuningConfig(task_type="CAUSAL_LM"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 0, steps)
    curve = []
    for step in range(1, steps + 1):
        start = (step - 1) * BATCH % len(train)
        model(**batch(train[start : start + BATCH])).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % interval == 0 or step == steps:
            curve.append((step, evaluate(model, evaluation)))
    moved = sum(int((a != b).sum()) for a, b in zip(before, trained))
    return curve, moved, sum(parameter.numel() for parameter in trained)


def evaluate(model, rows):
    total = count = 0
    with torch.no_grad():
        for start in range(0, len(rows), BATCH):
            given = batch(rows[start : start + BATCH])
            targets = int((given["labels"][:, 1:] != -100).sum())
            logits = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), given["labels"][:, 1:].flatten(), reduction="sum"
            )
            total, count = total + float(loss), count + targets
    return total / count


def ours(binary, directory, out, steps, interval):
    config = out / "bf16.yaml"
    config.write_text(f"""
model: {directory}
out: {out / "ours"}
device: cpu
data: {{train: {out / "train.jsonl"}, eval: {out / "eval.jsonl"}, shuffle: false, packing: false, max_length: {LENGTH}}}
optimizer: {{lr: {LR}, weight_decay: {WEIGHT_DECAY}}}
schedule: {{name: cosine, warmup_ratio: 0}}
clip_norm: {CLIP}
batch_size: {BATCH}
max_steps: {steps}
eval_interval: {interval}
save_interval: {steps}
resume: never
""")
    subprocess.run([binary, "train", config], check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (out / "ours" / "metrics.jsonl").read_text().splitlines()]
    curve = [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]
    adapter = load_file(out / "ours" / "adapter" / "adapter_model.safetensors")
    base = load_file(Path(directory) / "model.safetensors")
    moved = 0
    for key, value in adapter.items():
        name = key.removeprefix("base_model.model.").replace(".ln_tuning_layers", "")
        moved += int((value != base[name].float()).sum())
    return curve, moved


def draw(path, curves):
    """Loss over steps; `curves` by name."""
    points = [point for curve in curves.values() for point in curve]
    last = max(step for step, _ in points)
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    low, high = low - (high - low) * 0.1, high + (high - low) * 0.1 + 1e-6
    x = lambda step: 80 + 560 * step / last  # noqa: E731
    y = lambda loss: 290 - 240 * (loss - low) / (high - low)  # noqa: E731
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="700" height="350" font-family="sans-serif" font-size="13">',
        '<rect width="700" height="350" fill="white"/>',
        '<text x="80" y="28" font-size="16">Evaluation loss of a bf16 model, AdamW, lr 1e-4</text>',
        '<path d="M80 50 V290 H640" fill="none" stroke="black"/>',
    ]
    for i in range(5):
        loss, step = low + (high - low) * i / 4, last * i / 4
        parts.append(f'<text x="72" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.3f}</text>')
        parts.append(f'<text x="{x(step):.1f}" y="310" text-anchor="middle">{step:.0f}</text>')
    parts.append('<text x="360" y="335" text-anchor="middle">step</text>')
    for (name, curve), colour in zip(curves.items(), ["#c83c32", "#466eb4"]):
        line = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        top = y(curve[-1][1]) - 10
        parts.append(f'<text x="636" y="{top:.1f}" text-anchor="end" fill="{colour}">{name}</text>')
    path.write_text("\n".join([*parts, "</svg>", ""]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="ln-tuning")
    parser.add_argument("--out", type=Path, default=Path("target/bf16"))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--base-steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    directory, interval = args.out / "base", max(args.steps // 20, 1)
    if not (directory / "model.safetensors").exists():
        make_base(directory, strings("torch", 1500) + strings("numpy", 500), args.base_steps)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    # Those that fit into a row as a whole.
    rows = {text: row(tokenizer, text) for text in strings("sympy", 4000)}
    texts = [text for text, ids in rows.items() if len(ids) <= LENGTH][:1100]
    rows = [rows[text] for text in texts]
    for name, part in [("train", texts[:-100]), ("eval", texts[-100:])]:
        (args.out / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    start = time.perf_counter()
    own, own_moved = ours(args.binary, directory, args.out, args.steps, interval)
    middle = time.perf_counter()
    theirs, moved, weights = peft(directory, rows[:-100], rows[-100:], args.steps, interval)
    end = time.perf_counter()
    print(f"{'step':>6} {'ours':>9} {'PEFT':>9}")
    for (step, a), (_, b) in zip(own, theirs):
        print(f"{step:>6} {a:>9.4f} {b:>9.4f}")
    print(f"weights that moved: ours {own_moved} of {weights}, PEFT {moved} of {weights}")
    print(f"seconds: ours {middle - start:.1f}, PEFT {end - middle:.1f}")
    draw(args.out / "bf16.svg", {"PEFT, trained in bf16": theirs, "ln-tuning, f32 masters": own})
    report = {
        "ours": own, "peft": theirs, "ours_moved": own_moved, "peft_moved": moved, "weights": weights,
        "ours_seconds": middle - start, "peft_seconds": end - middle,
    }
    (args.out / "bf16.json").write_text(json.dumps(report, indent=1) + "\n")


main()
