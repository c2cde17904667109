"""The pipeline of an encoder–decoder: its stages have some layers of either side.

Each piece of a source goes through the encoder's layers, stage by stage, then once more round the
ring: every stage makes keys and values of it for its own layers of the decoder, and keeps them
until the next source comes and nobody holds this one. Then prompts go round, and tokens, as without
a source.
"""

import dataclasses
import itertools
import weakref

import numpy as np

from tfspeed.dataflow import stream
from tfspeed.dataflow.pipeline import PipelineEngine
from tfspeed.dataflow.stream import Hearing, Round
from tfspeed.errors import TfspeedError

_ANSWER = 64  # tokens that are reckoned with where a source is read before anything is asked


class SpreadSource:
    """A source of which each stage has its part, known there by `key`."""

    def __init__(self, key: int, rows: int):
        self.key, self.rows = key, rows


class ListeningPipeline(PipelineEngine):
    """See `PipelineEngine`. Where the first batch is heard before its prompts are known, prompts
    that are short and answers of 64 tokens decide who has which layers."""

    takes_source = True

    def __init__(self, inner, stages, microbatches: int):
        super().__init__(inner, stages, microbatches)
        self._keys, self._kept = itertools.count(), set()

    def generate(self, prompts, new_tokens, sampling=None, stop_tokens=(), *, encoded=None):
        prompts = [list(map(int, prompt)) for prompt in prompts]
        if encoded is None:
            self._check(prompts, new_tokens)
            encoded = self.encode(self.model.default_source(len(prompts)), prompts, new_tokens)
        self._check_rows(len(prompts), encoded)
        return super().generate(prompts, new_tokens, sampling, stop_tokens, encoded=encoded)

    def encode(self, source, prompts=None, new_tokens: int = _ANSWER):
        """See `Engine.encode`.

        Args:
            prompts, new_tokens: what will be asked, where that is known: see the class.
        """
        source = self.model.checked_source(source)
        groups = stream.grouped(len(source), self.microbatches)
        work = self._heard(self._work(prompts or [[0]] * len(source), new_tokens), source)
        if not self.plans:
            self._map(work)
        made = SpreadSource(next(self._keys), len(source))
        self._kept.add(made.key)
        weakref.finalize(made, self._kept.discard, made.key)
        header = {"kind": "encode", "source": made.key, "kept": sorted(self._kept)}
        self._round(Hearing([
            (header | {"group": number, "copies": len(list(same))}, [source[list(rows)]])
            for number, group in enumerate(groups)
            for rows, same in itertools.groupby(map(tuple, group.reshape(-1, work.source_piece)))]))
        return made

    def score(self, tokens, encoded=None):
        tokens = np.asarray(tokens, np.int32)
        if encoded is None:
            encoded = self.encode(self.model.default_source(len(tokens)))
        self._check_rows(len(tokens), encoded)
        made = self._round(Round([
            ({"kind": "score", "source": encoded.key, "group": number}, [tokens[rows]])
            for number, rows in enumerate(stream.grouped(len(tokens), self.microbatches))]))
        return np.concatenate(made)[:len(tokens)]

    def _heard(self, work, source: np.ndarray):
        """The same work after a source."""
        length = source.shape[1]
        positions = (length + 1) // 2 if self.model.config.source == "audio" else length
        return dataclasses.replace(
            work, source=positions,
            source_piece=stream.piece_of(work.rows, positions, self._piece_tokens))

    def _check_rows(self, rows: int, encoded: SpreadSource) -> None:
        if encoded.rows != rows:
            raise TfspeedError("A batch needs a source for each of its rows.", rows=rows,
                               sources=encoded.rows)

    def _cache_bytes(self, batch, context):
        c = self.model.config
        return c.attended_bytes(batch, context, c.source_length if c.source == "audio" else 1, 1)
