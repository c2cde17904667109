"""An encoder–decoder as one `.tflite` file: `encode`, `prefill_…` and `decode_…` over one set of
weights.

An app runs `encode` on log-mel frames (for Whisper `[1, 3000, 80]`), gives its outputs
`cross_k_0`, `cross_v_0`, … to prefill and decode as the inputs of the same names, and goes on as
with a decoder's file (see `tflite`): the prompt but for its last token through prefill, then decode
token by token.
"""

from pathlib import Path

import numpy as np

from tfspeed.devices import available_cores
from tfspeed.errors import TfspeedError
from tfspeed.export import files, tflite
from tfspeed.litert import seq2seq
from tfspeed.litert.formats import Formats
from tfspeed.litert.graph import TfliteFile
from tfspeed.litert.pack_seq2seq import pack_encoder_decoder
from tfspeed.litert.runtime import Program
from tfspeed.litert.seq2seq import BIAS, ENCODE, SMALLEST
from tfspeed.litert.seq2seq_session import CrossSession
from tfspeed.litert.session import signatures
from tfspeed.models.encoder_decoder import MASKED
from tfspeed.models.encoder_decoder_config import EncoderDecoderConfig
from tfspeed.models.whisper_tokens import WhisperTokens


def check(model, form: str) -> None:
    """Refuses what an encoder–decoder is not written as."""
    if model.reads_source and form == "litertlm":
        raise TfspeedError("A .litertlm bundle holds decoders alone: LiteRT-LM's runtime hands "
                           "tokens, positions, masks and KV caches to a model, and no keys and "
                           "values of an encoder.", model=model.name,
                           hint="Use --format=tflite, which LiteRT's CompiledModel runs.")


def notes(model) -> list[str]:
    if not model.reads_source:
        return []
    return ["Quality and probes are of text after an empty source: they tell whether the file "
            "computes what the model does, not how well it listens; scripts/scenario.py measures "
            "that."]


def write(path: Path, model, weights: str, context: int) -> None:
    """Writes the file of an `EncoderDecoderModel`."""
    config = model.config
    packed = pack_encoder_decoder(model.keras_model, Formats(weights))
    files.check_room(path.parent, int(1.25 * sum(w.nbytes for w in packed.weights)))
    sizes = sorted({min(SMALLEST, context), context})
    file = TfliteFile(f"{model.name}, exported by tfspeed")
    seq2seq.write(file, config, packed, 1, signatures(sizes, 1, seq2seq.PREFILLS))
    tflite.describe(file, model, context, sizes=sizes, config=config.to_dict(),
                    **described(model))
    file.write(path)


def described(model) -> dict:
    """What an app must know to begin."""
    audio = model.config.source == "audio"
    return {"source": model.config.source,
            "empty_source": None if audio else [int(t) for t in np.ravel(model.default_source(1))],
            "prompts": _prompts(model.tokenizer) if audio else None}


def _prompts(tokenizer) -> dict | None:
    """Ids that an app begins with, by language, to transcribe."""
    if tokenizer is None:
        return None
    tokens = WhisperTokens.of(tokenizer)
    return {code: tokens.prompt(code, "transcribe") for code in tokens.languages or ("en",)}


class Seq2SeqRunner:
    """A file that `write` made, one text at a time, after an empty source or the one of `hear`."""

    def __init__(self, path: Path):
        described = tflite.description(path)
        self.config = EncoderDecoderConfig.from_dict(described["config"])
        self._program = Program(path, available_cores())
        self._encode = self._program.buffers(ENCODE)
        self._session = CrossSession(self._program, self.config, described["sizes"])
        self._session.hear(self._encode)
        self.hear(described["empty_source"])

    def hear(self, source=None) -> None:
        """Encodes log-mel frames `[frames, mels]`, or tokens; None: silence."""
        c = self.config
        if c.source == "audio":
            silence = np.full((c.source_frames, c.mels), -1.5, np.float32)
            self._encode["frames"] = silence if source is None else source
        else:
            padded = np.zeros(c.source_length, np.int32)
            padded[:len(source)] = source
            self._encode["source"] = padded
            self._encode[BIAS] = np.where(np.arange(c.source_length) < len(source), 0, MASKED)
        self._encode.run()

    def score(self, tokens: np.ndarray) -> np.ndarray:
        """float32 logits `[1, length, vocabulary]` of int32 `[1, length]`."""
        starts = np.zeros(1, np.int32)
        rows = [np.array(self._session.begin(tokens[:, :1], starts))]
        rows += [np.array(self._session.step(column)) for column in tokens[:, 1:].T]
        return np.stack(rows, 1)

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The `count` likeliest tokens after a prompt, one after the other."""
        logits = self._session.begin(np.asarray([prompt], np.int32), np.zeros(1, np.int32))
        found = [int(logits[0].argmax())]
        while len(found) < count:
            logits = self._session.step(np.asarray(found[-1:], np.int32))
            found.append(int(logits[0].argmax()))
        return found

    def close(self) -> None:
        self._session = self._encode = None
        self._program.close()
