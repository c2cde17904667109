"""The `litert` engine over encoder–decoders: what `encode` writes is what decode steps read."""

import weakref

import numpy as np

from tfspeed.engines.base import pad_left
from tfspeed.engines.litert_base import LiteRtBase
from tfspeed.litert import profiler
from tfspeed.litert.decoder import decode_name
from tfspeed.litert.formats import Formats
from tfspeed.litert.pack_seq2seq import pack_encoder_decoder
from tfspeed.litert.runtime import Buffers, Program
from tfspeed.litert.seq2seq import (
    BIAS,
    ENCODE,
    PREFILLS,
    SMALLEST,
    CrossLowering,
    decoder_config,
    write,
)
from tfspeed.litert.seq2seq_session import CrossSession
from tfspeed.litert.session import capacities, signatures
from tfspeed.models.encoder_decoder import MASKED


class Encoded:
    """A source after the encoder; its memory is used again when nobody holds it any more."""

    def __init__(self, buffers: Buffers):
        self.buffers = buffers


class EncoderDecoderLiteRtEngine(LiteRtBase):
    """Args:
        weights: how the matrices are stored, see `litert.formats.Formats`.
    """

    profile_source = profiler.SOURCE
    pass_widths = 1, 4, 8  # see `LiteRtEngine`
    takes_source = True

    def __init__(self, model, weights: str = "float32"):
        super().__init__(model, weights, pack_encoder_decoder(model.keras_model, Formats(weights)))
        self.config = model.config
        self._sizes = [SMALLEST, *capacities(decoder_config(self.config),
                                              self.config.context_length)]
        self._never = list(model.suppressed)
        self._never_first = list({*self._never, *model.suppressed_first})
        self._programs: dict[int, Program] = {}
        self._free: dict[int, list[Buffers]] = {}

    def step_bytes(self, batch, context):
        c = self.config
        return self._packed.step_bytes + c.attended_bytes(batch, context, c.source_length, 4)

    def encode(self, source):
        source = self.model.checked_source(source)
        rows = len(source)
        free = self._free.setdefault(rows, [])
        buffers = free.pop() if free else self._program_of(rows).buffers(ENCODE)
        if self.config.source == "audio":
            buffers["frames"] = source
        else:
            padded = np.full((rows, self.config.source_length), -1, np.int32)
            padded[:, :source.shape[1]] = source
            buffers["source"] = np.maximum(padded, 0)
            buffers[BIAS] = np.where(padded < 0, MASKED, 0)
        buffers.run()
        made = Encoded(buffers)
        weakref.finalize(made, free.append, buffers)
        return made

    def score(self, tokens, encoded=None):
        tokens = np.asarray(tokens, np.int32)
        if encoded is None:
            encoded = self.encode(self.model.default_source(len(tokens)))
        session = self._session(len(tokens), tokens.shape[1])
        try:
            session.hear(encoded.buffers)
            starts = np.zeros(len(tokens), np.int32)
            rows = [np.array(session.begin(tokens[:, :1], starts))]
            rows += [np.array(session.step(column)) for column in tokens[:, 1:].T]
            return np.stack(rows, 1)
        finally:
            self._sessions.setdefault(len(tokens), session)

    def _generate(self, prompts, new_tokens, sampling, stop_tokens, encoded=None):
        width, batch = max(map(len, prompts)), len(prompts)
        tokens, lengths = pad_left(prompts, width)
        session = self._session(batch, width + new_tokens)
        try:
            session.hear(encoded.buffers)
            yield from self._steps(session, session.begin(tokens, width - lengths), new_tokens,
                                   sampling, stop_tokens)
        finally:
            self._sessions.setdefault(batch, session)

    def choose(self, logits, sampling, count):
        logits[:, self._never if count else self._never_first] = -np.inf
        return super().choose(logits, sampling, count)

    def open_text(self, prompt_tokens: int, new_tokens: int, widths: tuple[int, ...],
                  exit_layer: int):
        """See `LiteRtText`; its signatures are in the file that encodes, see `_program_of`."""
        from tfspeed.speculation.litert_text import LiteRtText
        del exit_layer
        return LiteRtText(self, self._new_session(1, prompt_tokens + new_tokens), widths)

    def _new_session(self, batch, needed):
        del needed  # the context is short: there is room for all of it
        return CrossSession(self._program_of(batch), self.config, self._sizes)

    def _decode_signature(self, tokens, lengths):
        batch, width = tokens.shape
        size = next(s for s in self._sizes if s > width)
        inputs = {"tokens": tokens[:, -1], "input_pos": np.asarray([width], np.int32)}
        if batch > 1:
            inputs["starts"] = width - lengths

        def write(file):
            CrossLowering(file, self.config, self._packed, decode_name(size), batch, 1,
                          size).write(True)

        return write, decode_name(size), inputs

    def _program_of(self, batch: int) -> Program:
        """A file for so many rows: one encode, and prefill and decode for each cache; for one
        row also what verifies drafts."""
        if batch not in self._programs:
            widths, exit_layers, drafts = (), 0, self.model.speculation
            if drafts is not None and batch == 1:
                widths = drafts.widths(self.pass_widths)
                exit_layers = drafts.exit_layers(self.model.layers)
            decoder = signatures(self._sizes, batch, PREFILLS, widths, exit_layers)
            self._programs[batch] = self._load(lambda file: write(
                file, self.config, self._packed, batch, decoder))
        return self._programs[batch]
