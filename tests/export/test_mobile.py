"""BUILD.md's Kotlin for phones: its names are those in the files, and its calls, made here in the
same order on this machine's runtime, give the tokens of the runner that proves every export."""

import re
from pathlib import Path

import numpy as np

from tfspeed.export import tflite, verify
from tfspeed.litert.decoder import decode_name
from tfspeed.litert.runtime import Program

BUILD = (Path(__file__).parents[2] / "BUILD.md").read_text("utf-8")
KOTLIN, = (block for block in re.findall(r"```kotlin\n(.*?)```", BUILD, re.DOTALL)
           if "CompiledModel" in block)
PROMPT = [5, 9, 2, 33, 8, 1]


def test_the_calls_of_the_snippet_on_this_machine(artifacts):
    path = artifacts["tflite"]
    signature = next(s["name"] for s in tflite.description(path)["signatures"]
                     if s["name"].startswith("decode"))
    program = Program(path, 2)
    names = program.signatures[signature]
    caches = [name for name in names["inputs"] if name.startswith("kv_cache_")]
    assert caches == [f"kv_cache_{part}_{layer}" for layer in range(2) for part in "kv"]
    buffers = program.buffers(signature)
    for name in caches:
        buffers[name] = np.zeros_like(buffers[name])
    found, token = [], PROMPT[0]
    for at in range(len(PROMPT) + 7):
        buffers["tokens"], buffers["input_pos"] = np.array([token]), np.array([at])
        buffers.run()
        likeliest = int(buffers["logits"].argmax())
        token = PROMPT[at + 1] if at + 1 < len(PROMPT) else likeliest
        if at + 1 >= len(PROMPT):
            found.append(likeliest)
    program.close()
    with verify.opened(path, "tflite") as runner:
        assert found == runner.greedy(PROMPT, 8)


def test_the_names_of_the_snippet_are_in_the_files(artifacts):
    program = Program(artifacts["tflite"], 1)
    names = program.signatures[next(name for name in program.signatures
                                    if name.startswith("decode"))]
    known = {re.sub(r"\d+$", "", name) for name in (*names["inputs"], *names["outputs"])}
    program.close()
    told = set(re.findall(r'"(tokens|input_pos|logits|kv_cache_[kv]_)(?:\$\w+)?"', KOTLIN))
    assert told == known
    capacity, = set(re.findall(r'"decode_(\d+)"', KOTLIN))
    assert f'"{decode_name(int(capacity))}"' in KOTLIN
