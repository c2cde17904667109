"""The `litert` engine: a decoder as one `.tflite` file, run by LiteRT with its KV cache in place.

Why it is faster: XNNPACK's matrix-vector kernels read int8 or int4 weights at the speed of memory,
the step is one static graph, and a token moves 4 bytes in and one row of logits out.
"""

import numpy as np

from tfspeed.engines.litert_base import LiteRtBase
from tfspeed.litert import profiler
from tfspeed.litert.decoder import Lowering, decode_name
from tfspeed.litert.formats import Formats
from tfspeed.litert.packed_cache import packed
from tfspeed.litert.runtime import Buffers, Program
from tfspeed.litert.session import DecoderSession, capacities, clear, signatures


class LiteRtEngine(LiteRtBase):
    """Runs a model over a `Decoder`.

    Args:
        weights: how the matrices are stored, see `litert.formats.Formats`.
    """

    profile_source = profiler.SOURCE
    pass_widths = 1, 4, 8  # each is a signature for each size of the cache

    def __init__(self, model, weights: str = "float32"):
        super().__init__(model, weights, packed(model, Formats(weights)))
        self.config = model.keras_model.config
        self._scorers: dict[int, tuple[Program, Buffers]] = {}

    def step_bytes(self, batch, context):
        return self._packed.step_bytes + self.config.cache_bytes(batch, context, 4)

    def score(self, tokens):
        tokens = np.asarray(tokens, np.int32)
        length = tokens.shape[1]
        if length not in self._scorers:
            program = self._program([("score", 1, length, length, 0, True)])
            buffers = program.buffers("score")
            clear(buffers, self.config)
            buffers["input_pos"] = np.arange(length)
            self._scorers[length] = program, buffers
        _, buffers = self._scorers[length]
        rows = []
        for row in tokens:
            buffers["tokens"] = row
            buffers.run()
            rows.append(buffers["logits"])
        return np.concatenate(rows)

    def open_text(self, prompt_tokens: int, new_tokens: int, widths: tuple[int, ...],
                  exit_layer: int):
        """See `LiteRtText`."""
        from tfspeed.speculation.litert_text import LiteRtText
        session = self._new_session(1, prompt_tokens + new_tokens, widths, exit_layer)
        return LiteRtText(self, session, widths)

    def _new_session(self, batch, needed, widths=(), exit_layers=0):
        sizes = capacities(self.config, needed)
        program = self._program(signatures(sizes, batch, widths=widths, exit_layers=exit_layers))
        return DecoderSession(program, self.config, sizes)

    def _decode_signature(self, tokens, lengths):
        batch, width = tokens.shape
        size = next(s for s in capacities(self.config, width + 1) if s > width)
        inputs = {"tokens": tokens[:, -1], "input_pos": np.asarray([width], np.int32)}
        if batch > 1:
            inputs["starts"] = width - lengths
        name = decode_name(size)
        return self._writer([(name, batch, 1, size, 0, True)]), name, inputs

    def _program(self, signatures) -> Program:
        return self._load(self._writer(signatures))

    def _writer(self, signatures):
        """For `_load`: see `signatures`."""
        def write(file):
            for *signature, logits in signatures:
                Lowering(file, self.config, self._packed, *signature).write(logits)

        return write
