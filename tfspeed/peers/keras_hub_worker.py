"""KerasHub as a peer. Run by its own Python: keras_hub_worker.py MODEL_FOLDER THREADS

Reads {"prompts": [[ids], …], "new_tokens": n} lines, answers {"seconds": …, "tokens": …} lines.
"""

import json
import sys
import time

import tensorflow as tf


def main(folder: str, threads: int) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    import keras_hub
    import numpy as np

    start = time.perf_counter()
    model = keras_hub.models.CausalLM.from_preset(folder, preprocessor=None, dtype="float32")
    model.compile(sampler="greedy", jit_compile=True)
    answer({"load_s": time.perf_counter() - start,
            "version": f"keras_hub {keras_hub.__version__}"})
    for line in sys.stdin:
        request = json.loads(line)
        if "windows" in request:
            answer({})  # float32, as our baseline: nothing to compare
            continue
        prompts, new_tokens = request["prompts"], request["new_tokens"]
        length = max(map(len, prompts)) + new_tokens
        ids = np.zeros((len(prompts), length), "int32")
        mask = np.zeros((len(prompts), length), "int32")
        for row, prompt in enumerate(prompts):
            ids[row, :len(prompt)] = prompt
            mask[row, :len(prompt)] = 1
        start = time.perf_counter()
        made = model.generate({"token_ids": ids, "padding_mask": mask}, stop_token_ids=None)
        tokens = np.asarray(made["token_ids"])
        seconds = time.perf_counter() - start
        rows = [tokens[row, len(p):len(p) + new_tokens].tolist() for row, p in enumerate(prompts)]
        answer({"seconds": seconds, "tokens": rows})


def answer(value: dict) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
