"""llama.cpp as a peer. Run by its own Python: llama_cpp_worker.py GGUF_FILE THREADS TYPE

Requantizes the file to TYPE (Q8_0, Q4_0, ...) first, then reads {"prompts": [[ids]],
"new_tokens": n} and {"windows": [[ids], ...]} lines and answers in JSON lines. It drives the C
functions themselves, so that no Python wrapper is timed.
"""

import ctypes
import json
import os
import sys
import tempfile
import time

import llama_cpp as ll
import numpy as np

_CONTEXT = 2048


def main(source: str, threads: int, kind: str) -> None:
    quiet = ll.llama_log_callback(lambda *_: None)
    ll.llama_log_set(quiet, ctypes.c_void_p(0))
    ll.llama_backend_init()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"{kind}.gguf")
        requantize(source, path, kind, threads)
        model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
        if not model:
            raise RuntimeError(f"llama.cpp could not load its own {kind} file")
    params = ll.llama_context_default_params()
    params.n_ctx = params.n_batch = _CONTEXT
    params.n_threads = params.n_threads_batch = threads
    context = ll.llama_init_from_model(model, params)
    vocabulary = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
    answer({"load_s": time.perf_counter() - start, "version": f"llama-cpp-python {ll.__version__}",
            "weights_bytes": ll.llama_model_size(model)})
    for line in sys.stdin:
        request = json.loads(line)
        if "windows" in request:
            answer(score(context, vocabulary, request["windows"]))
        else:
            answer(generate(context, vocabulary, request["prompts"], request["new_tokens"]))


def requantize(source: str, path: str, kind: str, threads: int) -> None:
    params = ll.llama_model_quantize_default_params()
    params.ftype = getattr(ll, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.allow_requantize, params.nthread = True, threads
    if ll.llama_model_quantize(source.encode(), path.encode(), params):
        raise RuntimeError(f"llama.cpp could not requantize {source} to {kind}")


def decode(context, vocabulary: int, tokens, first: int, all_logits: bool = False) -> np.ndarray:
    """Reads tokens at positions from `first` on; logits of the last, or of all."""
    batch = ll.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, first + i, 1
        batch.seq_id[i][0] = 0
        batch.logits[i] = all_logits or i == len(tokens) - 1
    code = ll.llama_decode(context, batch)
    if code:
        raise RuntimeError(f"llama_decode answered {code}")
    rows = len(tokens) if all_logits else 1
    pointer = ll.llama_get_logits(context)
    logits = np.ctypeslib.as_array(pointer, shape=(rows, vocabulary))
    ll.llama_batch_free(batch)
    return logits


def generate(context, vocabulary, prompts, new_tokens) -> dict:
    if len(prompts) > 1:
        raise RuntimeError("this worker measures batch 1")
    start, times, tokens = time.perf_counter(), [], []
    ll.llama_memory_clear(ll.llama_get_memory(context), True)
    logits, at = decode(context, vocabulary, prompts[0], 0), len(prompts[0])
    while True:
        tokens.append(int(logits[-1].argmax()))
        times.append(time.perf_counter() - start)
        if len(tokens) == new_tokens:
            return {"seconds": times[-1], "token_s": times, "tokens": [tokens]}
        logits, at = decode(context, vocabulary, tokens[-1:], at), at + 1


def score(context, vocabulary, windows) -> dict:
    """Mean loss of each next token inside of the windows."""
    loss, count = 0.0, 0
    for window in windows:
        ll.llama_memory_clear(ll.llama_get_memory(context), True)
        logits = decode(context, vocabulary, window, 0, True)[:-1].astype(np.float64)
        top = logits.max(-1)
        total = top + np.log(np.exp(logits - top[:, None]).sum(-1))
        loss += (total - logits[np.arange(len(logits)), window[1:]]).sum()
        count += len(logits)
    return {"loss": loss / count, "tokens": count}


def answer(value: dict) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
