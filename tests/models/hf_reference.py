"""Writes hf_reference.json: logits of transformers' own models on the folders of hf_folders.py.

    pip install torch transformers safetensors   # into an environment of its own
    python tests/models/hf_reference.py
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from hf_folders import CASES, TOKENS, write_folder

ROWS = (2, 11, 19)  # positions that are kept


def logits(folder: Path) -> np.ndarray:
    # Eager attention knows Gemma 2's softcap; for Falcon it adds ALiBi twice (transformers 5.23).
    attention = "sdpa" if folder.name.startswith("falcon") else "eager"
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise SystemExit(f"{folder.name}: {what}: {info[what]}")
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS, dtype=torch.long)).logits[0].numpy()


def main():
    found = {}
    with tempfile.TemporaryDirectory() as root:
        for case, config in CASES.items():
            values = logits(write_folder(Path(root) / case, config))[list(ROWS)]
            found[case] = [[round(float(v), 5) for v in row] for row in values]
    text = json.dumps({"transformers": transformers.__version__, "torch": torch.__version__,
                       "rows": ROWS, "logits": found})
    Path(__file__).with_suffix(".json").write_text(text.replace("]], ", "]],\n ") + "\n")


if __name__ == "__main__":
    main()
