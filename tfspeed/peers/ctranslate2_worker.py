"""CTranslate2 as a peer. Run by its own Python: ctranslate2_worker.py MODEL_FOLDER THREADS TYPE

Reads {"frames": NPY_FILE, "prompt": [ids], "new_tokens": n} lines, the frames float32 `[1, mels,
frames]`, and answers {"encode_s": …, "decode_s": …, "tokens": [ids]} lines. Greedy; its own
suppression rules, which are Whisper's.
"""

import json
import sys
import time

import ctranslate2
import numpy as np


def main(folder: str, threads: int, kind: str) -> None:
    start = time.perf_counter()
    model = ctranslate2.models.Whisper(folder, device="cpu", compute_type=kind, inter_threads=1,
                                       intra_threads=threads)
    answer({"load_s": time.perf_counter() - start, "type": model.compute_type,
            "version": f"ctranslate2 {ctranslate2.__version__}"})
    for line in sys.stdin:
        request = json.loads(line)
        frames = ctranslate2.StorageView.from_array(np.load(request["frames"], allow_pickle=False))
        start = time.perf_counter()
        encoded = model.encode(frames)
        heard = time.perf_counter()
        length = request["new_tokens"] + len(request["prompt"])
        made = model.generate(encoded, [request["prompt"]], beam_size=1, max_length=length)
        answer({"encode_s": heard - start, "decode_s": time.perf_counter() - heard,
                "tokens": made[0].sequences_ids[0]})


def answer(value: dict) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
