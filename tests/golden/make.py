"""Makes the golden files: configurations and adapters as real PEFT writes them.

    .venv/bin/python tests/golden/make.py configs
    .venv/bin/python tests/golden/make.py adapters

`configs` takes the PEFT of tests/python/requirements.txt. `adapters` installs the releases below into a temporary
directory, each in its turn, and runs with them.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
RELEASES = ["0.13.2", "0.14.0", "0.15.2", "0.16.0", "0.17.1", "0.18.1", "0.19.1", "0.20.0", "0.21.2"]

CONFIGS = {
    "defaults": {},
    "list": dict(target_modules=["norm2", "norm1", "norm2"]),
    "pattern": dict(target_modules=r".*\.(input|post_attention)_layernorm"),
    "excluded": dict(target_modules=["norm"], exclude_modules=["layers.0.norm"], modules_to_save=["score"]),
    "excluded_pattern": dict(target_modules="norm", exclude_modules=r".*0\.norm"),
    "all_fields": dict(
        task_type="SEQ_CLS", target_modules=["LayerNorm"], modules_to_save=["classifier", "score"],
        base_model_name_or_path="org/model", revision="main", inference_mode=True, peft_version="0.13.0",
        auto_mapping={"parent_library": "my.module", "base_model_class": "Net", "nested": {"b": 1, "a": [None, 2.5]}},
    ),
    "not_ascii": dict(target_modules=["größe", "层.norm", "𝄞", "tab\tquote\"\\"], revision="\x7f"),
    "empty_lists": dict(target_modules=[], exclude_modules=[], modules_to_save=[]),
}
for task in ("SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"):
    CONFIGS["task_" + task.lower()] = dict(task_type=task)


def configs():
    from peft import LNTuningConfig

    folder = HERE / "configs"
    folder.mkdir(exist_ok=True)
    for name, arguments in CONFIGS.items():
        with tempfile.TemporaryDirectory() as directory:
            LNTuningConfig(**arguments).save_pretrained(directory)
            text = (Path(directory) / "adapter_config.json").read_bytes()
        # The version of PEFT is no part of what these files show.
        version = json.loads(text)["peft_version"]
        if version != arguments.get("peft_version"):
            text = text.replace(json.dumps(version).encode(), b"null")
        (folder / f"{name}.json").write_bytes(text)


def adapters():
    with tempfile.TemporaryDirectory() as directory:
        for release in RELEASES:
            target = Path(directory) / release
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, f"peft=={release}"]
            subprocess.run(pip, check=True)
            environment = {**os.environ, "PYTHONPATH": str(target), "PYTHONWARNINGS": "ignore"}
            subprocess.run([sys.executable, __file__, "adapter", release], check=True, env=environment)


def adapter(release):
    import torch

    try:
        import peft
    except ImportError:
        # Old releases import a name that transformers has dropped since, for other methods.
        setattr(sys.modules["transformers"], "HybridCache", type("HybridCache", (), {}))
        import peft
    from safetensors.torch import save_file

    assert peft.__version__ == release, peft.__version__

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1 = torch.nn.LayerNorm(8)
            self.up = torch.nn.Linear(8, 12)
            self.norm2 = torch.nn.LayerNorm(12)
            self.head = torch.nn.Linear(12, 3)

    folder = HERE / "adapters" / release
    folder.mkdir(parents=True, exist_ok=True)
    net = peft.get_peft_model(Net(), peft.LNTuningConfig(target_modules=["norm1", "norm2"], modules_to_save=["head"]))
    net.add_adapter("other", peft.LNTuningConfig(target_modules=["norm2"]))
    values = {"default": {}, "other": {}}
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            for adapter_name, expected in values.items():
                # base_model.model.norm1.ln_tuning_layers.default.weight, …head.modules_to_save.default.weight
                if f".{adapter_name}." in name:
                    wave = torch.arange(tensor.numel()) * 0.37 + len(name)
                    tensor.copy_(wave.sin().view_as(tensor))
                    module = name.removeprefix("base_model.model.").split(".")[0]
                    expected[f"{module}.{name.rsplit('.', 1)[1]}"] = tensor.detach().clone()
    net.save_pretrained(str(folder))
    for unused in folder.rglob("README.md"):
        unused.unlink()
    for adapter_name, expected in values.items():
        save_file(expected, folder / f"expected_{adapter_name}.safetensors")
    if release == "0.13.2":
        net.save_pretrained(str(folder / "pickle"), safe_serialization=False, selected_adapters=["default"])
        (folder / "pickle" / "README.md").unlink()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
