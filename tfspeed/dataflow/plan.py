"""Which stage has which layers, and what is to be expected of it."""

import dataclasses

import numpy as np

from tfspeed.dataflow import chain
from tfspeed.dataflow.problem import Links, Problem
from tfspeed.dataflow.stage import StageDecoder
from tfspeed.models.decoder import Decoder


@dataclasses.dataclass(frozen=True)
class Work:
    """A batch as the pipeline runs it: `groups` of `rows` texts each, which decode in turn; their
    prompts, padded to `length`, are read `piece` rows at a time."""

    groups: int
    rows: int
    piece: int
    length: int
    new_tokens: int
    capacity: int


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """Nodes [begin, end) of the chain: embedding, a block a layer, head.

    Attributes:
        seconds: predicted, of a call by kind, `prefill` or `step`.
        sent: bytes to the next stage, of a call by kind.
    """

    begin: int
    end: int
    layers: int
    seconds: dict[str, float]
    sent: dict[str, int]

    @property
    def blocks(self) -> range:
        return range(max(0, self.begin - 1), min(self.layers, self.end - 1))

    @property
    def first(self) -> bool:
        return self.begin == 0

    @property
    def last(self) -> bool:
        return self.end == self.layers + 2

    @property
    def content(self) -> str:
        """What it holds, in words."""
        blocks = self.blocks
        named = [f"blocks {blocks[0]}–{blocks[-1]}" if len(blocks) > 1 else f"block {blocks[0]}"
                 ] if blocks else []
        return ", ".join(["embedding"] * self.first + named + ["head"] * self.last)

    def decoder(self, whole: Decoder) -> StageDecoder:
        return StageDecoder(whole, self.blocks, self.first, self.last)


def make(measured: list[dict], links: Links, work: Work, hidden_bytes: int) -> list[StagePlan]:
    """A stage for each processor, in their order: the sum of the slowest stage's prefill and the
    slowest stage's decode, of all `work`, is as small as can be.

    Args:
        measured: of each processor, `timing.node_seconds`.
        hidden_bytes: of one token's hidden state.
    """
    nodes = len(measured[0]["step"])
    sizes = {"prefill": work.piece * work.length * hidden_bytes, "step": work.rows * hidden_bytes}
    calls = {"prefill": work.groups * work.rows // work.piece,
             "step": work.groups * (work.new_tokens - 1)}
    problems = {}
    for kind, size in sizes.items():
        # All calls of a batch; a chain of one call would give the two phases the same weight.
        every = Links(links.latency_s * calls[kind], links.bytes_per_s)
        problems[kind] = Problem(
            np.stack([m[kind] for m in measured], 1) * calls[kind],
            {(i, i + 1): size * calls[kind] for i in range(nodes - 1)}, every)
    mapping = chain.two_phases(problems["prefill"], problems["step"], exactly=True, ordered=True)
    made = []
    for p in range(len(measured)):
        begin, end = mapping.index(p), nodes - mapping[::-1].index(p)
        last = end == nodes
        sent = {kind: 4 * (work.piece if kind == "prefill" else work.rows) if last else size
                for kind, size in sizes.items()}
        seconds = {kind: float(measured[p][kind][begin:end].sum() + measured[p][f"{kind}_call"][0]
                               + links.seconds(sent[kind])) for kind in sizes}
        made.append(StagePlan(begin, end, nodes - 2, seconds, sent))
    return made
