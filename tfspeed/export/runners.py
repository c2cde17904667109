"""Runs an artifact as its user would, out of the file alone: scores texts, continues prompts."""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfspeed import engines
from tfspeed.devices import available_cores
from tfspeed.errors import TfspeedError
from tfspeed.export import recurrent, seq2seq, seq2seq_saved, tflite
from tfspeed.litert.runtime import Buffers, Program
from tfspeed.models.encoder_decoder_model import SILENCE
from tfspeed.models.load import load
from tfspeed.quiet import without_warnings


class TfliteRunner:
    """A `.tflite` file that `tflite.write` made, one text at a time."""

    def __init__(self, path: Path):
        described = tflite.description(path)
        self._signatures = [tflite.Signature(**s) for s in described["signatures"]]
        self._program = Program(path, available_cores())
        self._score: Buffers | None = None

    def score(self, tokens: np.ndarray) -> np.ndarray:
        """float32 logits `[1, length, vocabulary]` of int32 `[1, length]`, `length` as the
        signature has it."""
        if self._score is None:
            self._score = self._cleared(self._program.buffers(tflite.SCORE))
            self._score["input_pos"] = np.arange(tokens.shape[1])
        self._score["tokens"] = tokens
        self._score.run()
        return self._score["logits"]

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The `count` likeliest tokens after a prompt, one after the other."""
        needed = len(prompt) + count
        decode = min((s for s in self._signatures if s.name.startswith("decode")
                      and s.capacity >= needed), key=lambda s: s.capacity)
        prefills = sorted((s for s in self._signatures if s.name.startswith("prefill")
                           and s.capacity == decode.capacity), key=lambda s: s.length)
        step = self._cleared(self._program.buffers(decode.name))
        at, last = 0, len(prompt) - 1
        while at < last:
            # The shortest that reads all, else the longest; none may reach over the cache's end.
            fits = [s for s in prefills if at + s.length <= decode.capacity]
            if not fits:
                self._feed(step, prompt[at:at + 1], at, 1)
                at += 1
                continue
            chosen = next((s for s in fits if s.length >= last - at), fits[-1])
            read = self._program.buffers(chosen.name)
            read.share(step, self._caches(chosen.name))
            piece = prompt[at:min(last, at + chosen.length)]
            self._feed(read, piece, at, chosen.length)
            at += len(piece)
        found, token = [], prompt[-1]
        for at in range(last, last + count):
            self._feed(step, [token], at, 1)
            token = int(step["logits"][0, -1].argmax())
            found.append(token)
        return found

    def _feed(self, buffers: Buffers, tokens: list[int], at: int, length: int) -> None:
        padded = np.zeros((1, length), np.int32)
        padded[0, :len(tokens)] = tokens
        buffers["tokens"], buffers["input_pos"] = padded, np.arange(at, at + length)
        buffers.run()

    def _caches(self, signature: str) -> list[str]:
        return [name for name in self._program.signatures[signature]["inputs"]
                if name not in ("tokens", "input_pos")]

    def _cleared(self, buffers: Buffers) -> Buffers:
        """New memory may hold NaN, which no mask hides."""
        for name in self._caches(tflite.SCORE):
            buffers[name] = np.zeros_like(buffers[name])
        return buffers

    def close(self) -> None:
        self._score = None
        self._program.close()


def of_tflite(path: Path):
    """What runs a `.tflite` file of ours."""
    described = tflite.description(path)
    if described.get("kind") == recurrent.KIND:
        return recurrent.RecurrentRunner(path)
    if "source" in described:
        return seq2seq.Seq2SeqRunner(path)
    return TfliteRunner(path)


class SavedModelRunner:
    """A SavedModel folder that `saved_model.write` made; TensorFlow alone would do."""

    def __init__(self, path: Path):
        try:
            with without_warnings():  # of gradients, which were left out on purpose
                self._loaded = tf.saved_model.load(str(path))
            self._call = {name: self._loaded.signatures[name] for name in (
                "serving_default", "initial_state", "prefill", "decode")}
            self._source, self._encoded = {}, {}
            if "encode" in self._loaded.signatures:
                self._call["encode"] = self._loaded.signatures["encode"]
                self._extra = json.loads((path / seq2seq_saved.EXTRA).read_text(encoding="utf-8"))
                self.hear(self._extra["empty_source"])
        except Exception as error:  # TensorFlow raises whatever a broken file leads to
            raise TfspeedError("This SavedModel cannot be loaded, or is none of ours.",
                               path=str(path), cause=str(error).splitlines()[0][:200]) from error
        # None where a prefill takes any length, else the one that it takes.
        self._length = self._call["prefill"].structured_input_signature[1]["tokens"].shape[1]

    def hear(self, source=None) -> None:
        """Encodes log-mel frames `[frames, mels]`, or tokens; None: silence."""
        (name, spec), = self._call["encode"].structured_input_signature[1].items()
        given = np.full(spec.shape[1:], SILENCE) if source is None else np.asarray(source)
        self._source = {name: tf.constant(given[None], spec.dtype)}
        self._encoded = self._call["encode"](**self._source)

    def score(self, tokens: np.ndarray) -> np.ndarray:
        """float32 logits `[1, length, vocabulary]` of int32 `[1, length]`."""
        return self._call["serving_default"](tokens=tf.constant(tokens), **self._source)["logits"]

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The `count` likeliest tokens after a prompt, one after the other."""
        state = self._call["initial_state"](batch=tf.constant(1))
        width = self._length or len(prompt)
        first = len(prompt) % width or width  # padding on the left, in the first piece only
        pieces = [prompt[:first], *(prompt[i:i + width]
                                    for i in range(first, len(prompt), width))]
        for piece in pieces:
            padded = np.zeros((1, width), np.int32)
            padded[0, width - len(piece):] = piece
            state = self._call["prefill"](tokens=tf.constant(padded),
                                          lengths=tf.constant([len(piece)]), **state,
                                          **self._encoded)
            logits = state.pop("logits")
        found = [int(tf.argmax(logits[0]))]
        while len(found) < count:
            state = self._call["decode"](tokens=tf.constant(found[-1:]), **state,
                                         **self._encoded)
            found.append(int(tf.argmax(state.pop("logits")[0])))
        return found

    def close(self) -> None:
        self._loaded = None
        self._call = {}


class KerasRunner:
    """A `.keras` file with its tokenizer, as `--model` takes it again."""

    def __init__(self, path: Path):
        self._engine = engines.create("graph", load(path))

    def score(self, tokens: np.ndarray):
        """float32 logits `[1, length, vocabulary]` of int32 `[1, length]`."""
        return self._engine.score(tokens)

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The `count` likeliest tokens after a prompt, one after the other."""
        return [int(token[0]) for token in self._engine.generate([prompt], count)]

    def close(self) -> None:
        self._engine = None
