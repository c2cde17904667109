"""An engine that runs a decoder as a pipeline of stages, each with the KV caches of its layers.

The rows of a batch are split into groups, at least as many as there are stages; while one group is
in the second stage, the next one is in the first. Prompts go through a few rows at a time, then
each group's tokens, one step after the other. The first stage leads: it sends what is ready, as
long as not too much is under way, and takes tokens that come back.

Who has which layers is decided by the first batch: layers, head and links are timed in its shapes,
on each worker, and `plan` maps them. Then a worker lets go of the layers of others.
"""

import contextlib
import dataclasses
import time
from collections import deque

import numpy as np

from tfspeed.dataflow import factory, placing, ring, stream
from tfspeed.dataflow.plan import StagePlan, Work, told
from tfspeed.dataflow.stream import Round, Stream
from tfspeed.engines.base import Engine
from tfspeed.errors import TfspeedError

DEPTH = 2  # messages under way for each stage


class PipelineEngine(Engine):
    """The leader calls `generate` and `score`, other workers `serve`.

    Args:
        inner: the engine of one device: `graph`, `xla` or `fused`.
        stages: a `ring.Threads` or `ring.Workers`.
        microbatches: groups of rows; 0: one a stage.

    Attributes:
        plans: a `StagePlan` for each stage, once there was a batch.
        calls: what a call takes, in words, by kind.
        chains, operators: of the leader, see `traced.chains`; nodes have the seconds measured here.
        wall_s: of all that stages ran since `seconds` was asked for.
        whole: a `costs.shapes.Shape` of the model before other workers had its layers; None where
            it is not known.
    """

    whole = None

    def __init__(self, inner: Engine, stages, microbatches: int):
        self._ring, self._factory = stages, factory.stages(inner)
        super().__init__(inner.name, inner.model)
        self._dtype, self._weights_bytes = inner.dtype, inner.weights_bytes
        self._step_weights = inner.step_bytes(0, 0)
        self._cache_item = (inner.step_bytes(1, 1) - self._step_weights) / max(
            1, self._cache_bytes(1, 1))
        self.microbatches = microbatches or stages.count
        self.plans: list[StagePlan] = []
        self.calls: dict[str, str] = {}
        self.chains, self.operators = {}, None
        self.wall_s = 0.0
        self._stages: list = []
        self._length, self._piece_tokens = self._factory.length, self._factory.piece_tokens
        self._busy = False

    @property
    def traces(self):
        return sum(stage.traces for stage in self._stages if stage)

    @traces.setter
    def traces(self, value):
        """Each stage counts its own."""

    @property
    def devices(self):
        return self._ring.names

    @property
    def row_shares(self):
        return 1

    def step_bytes(self, batch, context):
        return (min(batch, self.microbatches) * self._step_weights
                + int(self._cache_item * self._cache_bytes(batch, context)))

    @property
    def dtype(self):
        return self._dtype

    @property
    def weights_bytes(self):
        """Of this worker."""
        own = [stage.weights_bytes for stage in self._stages if stage]
        return sum(own) if own else self._weights_bytes

    def score(self, tokens):
        tokens = np.asarray(tokens, np.int32)
        if not self.plans:
            self._map(self._work([[0] * tokens.shape[1]], 2))
        return self._round(Round([({"kind": "score"}, [tokens])]))[0]

    def seconds(self) -> list[dict[str, list[float]]]:
        """Of each stage's calls since this was asked last, by kind."""
        self.wall_s = 0.0
        self._ring.tell({"do": "seconds"})
        return self._seconds()

    def serve(self) -> None:
        """Takes part until the leader tells None."""
        while (request := self._ring.tell()) is not None:
            if request["do"] == "map":
                self._mapped(Work(**request["work"]))
            elif request["do"] == "seconds":
                self._seconds()
            else:
                ring.serve(self._stages[self._ring.index], self._ring.inbox, self._ring.outbox)

    def _generate(self, prompts, new_tokens, sampling, stop_tokens, encoded=None):
        work = self._work(prompts, new_tokens)
        if not self.plans:
            self._map(work)
        flow = Stream(prompts, work, sampling, stop_tokens, self.plans[0].heads,
                      encoded and encoded.key)
        with self._running():
            yield from self._drive(flow)

    def _round(self, flow: Round) -> list[np.ndarray]:
        """The answers to all messages."""
        with self._running():
            deque(self._drive(flow), maxlen=0)
        return flow.answers

    def _work(self, prompts, new_tokens) -> Work:
        return stream.work_of(prompts, new_tokens, self.microbatches,
                              self._length(max(map(len, prompts))), self._piece_tokens)

    def _cache_bytes(self, batch, context) -> int:
        return self.model.config.cache_bytes(batch, context, 1)

    def _drive(self, flow: Stream | Round):
        stage, inbox, outbox = self._stages[0], self._ring.inbox, self._ring.outbox
        under_way = 0
        for column in flow.columns():
            if column is not None:
                yield column
                continue
            send = flow.ready and under_way < DEPTH * self._ring.count
            if send:
                outbox.put(*stage(*flow.ready.popleft()))
                under_way += 1
            if not send or inbox.waits:
                header, arrays = self._ring.inbox.get()
                if header["kind"] == ring.FAILED:
                    raise arrays[0]
                if not header.get("head", True):
                    header, arrays = stage(header | {"kind": "head"}, arrays)
                flow.take(header, arrays)
                under_way -= 1

    @contextlib.contextmanager
    def _running(self):
        """All stages answer inside."""
        start = time.perf_counter()
        self._start()
        try:
            yield
        finally:
            self._end()
            self.wall_s += time.perf_counter() - start

    def _start(self) -> None:
        if self._busy:
            raise TfspeedError("A pipeline runs one generation at a time.",
                               hint="Close the other one first.")
        self._busy = True
        self._ring.start(self._stages)

    def _end(self) -> None:
        """What is under way is waited for, and dropped."""
        try:
            self._ring.outbox.put({"kind": ring.END})
            while self._ring.inbox.get()[0]["kind"] != ring.END:
                pass
            self._stages[0].forget()
            self._ring.ended()
        finally:
            self._busy = False

    def _map(self, work: Work) -> None:
        self._ring.tell({"do": "map", "work": dataclasses.asdict(work)})
        self._mapped(work)

    def _mapped(self, work: Work) -> None:
        """Keeps what the mapping gives to this worker."""
        placed = placing.place(self._factory, self._ring, work)
        self.plans, self.chains, self.operators = placed.plans, placed.chains, placed.operators
        heard = f"{work.source_piece} x {work.source}"
        self.calls = {"encode": heard, "hear": heard,
                      "prefill": f"{work.piece} x {work.length}", "step": f"{work.rows} x 1"}
        own = self._ring.own
        self._stages = [self._factory.of(p) if i in own else None
                        for i, p in enumerate(self.plans)]
        if len(own) == 1:
            self.model.keras_model = self._factory.kept(self.plans[own[0]])
        self._factory = None  # and with it all that others have
        self.notes = told(self.plans, self.devices, self.microbatches)

    def _seconds(self) -> list[dict]:
        own = {str(i): dict(stage.seconds) for i, stage in enumerate(self._stages) if stage}
        told = self._ring.share(own)
        for stage in filter(None, self._stages):
            stage.seconds.clear()
        return [told[i].get(str(i), {}) for i in range(self._ring.count)]
