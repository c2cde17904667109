"""Which stage has which layers, and what is to be expected of it."""

import dataclasses

import numpy as np
import tensorflow as tf

from tfspeed.dataflow import chain
from tfspeed.dataflow.graph import Graph, decoder_chain, trace
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
        seconds: expected, of a call by kind, `prefill` or `step`, without sending.
        sent: bytes to the next stage, of a call by kind.
        sending: seconds that they take.
        heads: the share of the groups for which the first stage runs the head of a step.
    """

    begin: int
    end: int
    layers: int
    seconds: dict[str, float]
    sent: dict[str, int]
    sending: dict[str, float]
    heads: float = 0.0

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
        heads = (self.heads if self.first else 1 - self.heads) if self.first or self.last else 0
        head = ["head" if heads == 1 else f"head of {heads:.0%} of the groups"] if heads else []
        return ", ".join(["embedding"] * self.first + named + head)

    def decoder(self, whole: Decoder) -> StageDecoder:
        return StageDecoder(whole, self.blocks, self.first, self.last, self.runs_heads)

    @property
    def runs_heads(self) -> bool:
        """Whether it is the first stage, and runs heads for the last."""
        return self.first and self.heads > 0


def chains(decoder: Decoder, work: Work) -> tuple[dict[str, Graph], tf.Graph]:
    """The graphs of a call by kind, contracted, and TensorFlow's own of a step."""
    def prefill(tokens, lengths):
        state = decoder.initial_state(tokens.shape[0], work.capacity)
        return decoder.logits(decoder.forward(tokens, lengths, state)[0][:, -1])

    def step(tokens, lengths, state):
        return decoder.logits(decoder.forward(tokens, lengths, state)[0][:, -1])

    def shapes(rows, length):
        return tf.TensorSpec((rows, length), tf.int32), tf.TensorSpec((rows,), tf.int32)

    state = tf.nest.map_structure(
        lambda t: tf.TensorSpec(t.shape, t.dtype),
        tf.function(lambda: decoder.initial_state(work.rows, work.capacity))
        .get_concrete_function().structured_outputs)
    reading, _ = trace(prefill, *shapes(work.piece, work.length))
    stepping, operators = trace(step, *shapes(work.rows, 1), state)
    count = len(decoder.blocks)
    return {"prefill": decoder_chain(reading, count),
            "step": decoder_chain(stepping, count)}, operators


def make(measured: list[dict], sizes: dict[str, list[int]], links: Links, work: Work,
         shared_head: bool) -> list[StagePlan]:
    """A stage for each processor, in their order: the sum of the slowest stage's prefill and the
    slowest stage's decode, of all `work`, is as small as can be.

    The head is much of a step and little of a prefill, so that no cut suits both. Where the first
    stage has it anyway, it runs the head for some groups.

    Args:
        measured: of each processor, `timing.node_seconds`.
        sizes: bytes from each node to the next, by kind of call.
        shared_head: whether the head's matrix is the embedding's.
    """
    shares = [k / work.groups for k in range(work.groups + 1)] if shared_head else [0.0]
    found = [_mapped([_with_heads(m, share) for m in measured], sizes, links, work, share)
             for share in shares]
    return min(found, key=lambda made: made[0])[1]


def _with_heads(measured: dict, share: float) -> dict:
    """Costs where the first stage runs the head of a step for a share of the groups."""
    step = measured["step"].copy()
    step[0] += share * step[-1]
    step[-1] *= 1 - share
    return measured | {"step": step}


def _mapped(measured, sizes, links, work: Work, share: float) -> tuple[float, list[StagePlan]]:
    """Seconds of a batch, and the stages."""
    nodes = len(measured[0]["step"])
    calls = {"prefill": work.groups * work.rows // work.piece,
             "step": work.groups * (work.new_tokens - 1)}
    problems = {}
    for kind, edges in sizes.items():  # of all calls of the batch
        problems[kind] = Problem(
            np.stack([m[kind] for m in measured], 1) * calls[kind],
            {(i, i + 1): size * calls[kind] for i, size in enumerate(edges)},
            Links(links.latency_s * calls[kind], links.bytes_per_s))
    mapping = chain.two_phases(problems["prefill"], problems["step"], exactly=True, ordered=True)
    made = []
    for p, own in enumerate(measured):
        begin, end = mapping.index(p), nodes - mapping[::-1].index(p)
        tokens = {"prefill": work.piece, "step": work.rows}
        sent = {kind: sizes[kind][end - 1] if end < nodes else 4 * tokens[kind] for kind in sizes}
        if end == nodes:  # hidden states for the heads of the first stage, else tokens
            sent["step"] = round(share * sizes["step"][-1] + (1 - share) * sent["step"])
        made.append(StagePlan(
            begin, end, nodes - 2,
            {kind: float(own[kind][begin:end].sum() + own[f"{kind}_call"][0]) for kind in sizes},
            sent, {kind: links.seconds(size) for kind, size in sent.items()}, share))
    return sum(problem.period(mapping) for problem in problems.values()), made


def told(plans: list[StagePlan], names, groups: int) -> list[str]:
    """What a report must say."""
    return [
        f"A pipeline of {len(plans)} stages, mapped to the first batch: "
        + "; ".join(f"{name}: {p.content}" for name, p in zip(names, plans, strict=True)) + ".",
        f"Rows are split into up to {groups} groups, which take turns; a single row passes one "
        "stage after the other, and is no faster than on one device."]
