"""Which stage has which layers, and what is to be expected of it."""

import dataclasses

import numpy as np

from tfspeed.dataflow import chain
from tfspeed.dataflow.problem import Links, Problem


@dataclasses.dataclass(frozen=True)
class Work:
    """A batch as the pipeline runs it: `groups` of `rows` texts each, which decode in turn; their
    prompts, padded to `length`, are read `piece` rows at a time. Where they follow a source, it has
    `source` positions, and is encoded `source_piece` rows at a time."""

    groups: int
    rows: int
    piece: int
    length: int
    new_tokens: int
    capacity: int
    source: int = 0
    source_piece: int = 0


@dataclasses.dataclass(frozen=True)
class Cut:
    """Nodes [begin, end) of a chain: embedding, a block a layer, head (or an encoder's norm)."""

    begin: int
    end: int
    layers: int

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
    def named_blocks(self) -> list[str]:
        """In words, if there are any."""
        blocks = self.blocks
        return [f"blocks {blocks[0]}–{blocks[-1]}" if len(blocks) > 1 else f"block {blocks[0]}"
                ] if blocks else []


@dataclasses.dataclass(frozen=True)
class StagePlan(Cut):
    """A stage's part of the decoder.

    Attributes:
        seconds: expected, of a call by kind (`prefill`, `step`; `encode` and `hear` of a source),
            without sending.
        sent: bytes to the next stage, of a call by kind.
        sending: seconds that they take.
        heads: the share of the groups for which the first stage runs the head of a step.
        encoder: its part of the encoder, where there is one.
    """

    seconds: dict[str, float]
    sent: dict[str, int]
    sending: dict[str, float]
    heads: float = 0.0
    encoder: Cut | None = None

    def nodes(self, kind: str) -> range:
        """Of the chain of this kind of call."""
        part = self.encoder if kind == "encode" else self
        return range(part.begin, part.end)

    @property
    def content(self) -> str:
        """What it holds, in words."""
        heads = (self.heads if self.first else 1 - self.heads) if self.first or self.last else 0
        head = ["head" if heads == 1 else f"head of {heads:.0%} of the groups"] if heads else []
        encoder = [f"encoder {words}" for words in self.encoder.named_blocks
                   ] if self.encoder else []
        return ", ".join(encoder + ["embedding"] * self.first + self.named_blocks + head)

    @property
    def runs_heads(self) -> bool:
        """Whether it is the first stage, and runs heads for the last."""
        return self.first and self.heads > 0


def make(measured: list[dict], sizes: dict[str, list[int]], links: Links, work: Work,
         shared_head: bool) -> list[StagePlan]:
    """A stage for each processor, in their order: the sum of the slowest stage's prefill and the
    slowest stage's decode, of all `work`, is as small as can be.

    The head is much of a step and little of a prefill, so that no cut suits both. Where the first
    stage has it anyway, it runs the head for some groups.

    Args:
        measured: of each processor, `timing.node_seconds`.
        sizes: bytes from each node to the next, by kind of call; `encode` where there are sources.
        shared_head: whether the head's matrix is the embedding's.
    """
    shares = [k / work.groups for k in range(work.groups + 1)] if shared_head else [0.0]
    decoding = {kind: sizes[kind] for kind in ("prefill", "step")}
    found = [_mapped([_with_heads(m, share) for m in measured], decoding, links, work, share)
             for share in shares]
    plans = min(found, key=lambda made: made[0])[1]
    return _with_encoder(plans, measured, sizes["encode"], links) if work.source else plans


def _with_encoder(plans: list[StagePlan], measured: list[dict], sizes: list[int],
                  links: Links) -> list[StagePlan]:
    """Stages that have the encoder too: the slowest one's share of it, and of keys and values for
    the decoder's layers that it has already, takes as little as can be.

    Args:
        sizes: bytes from each of the encoder's nodes to the next.
    """
    hearing = [float(own["hear"][p.begin:p.end].sum() + own["hear_call"][0])
               for p, own in zip(plans, measured, strict=True)]
    problem = Problem(np.stack([own["encode"] for own in measured], 1),
                      {(i, i + 1): size for i, size in enumerate(sizes)}, links)
    mapping = chain.stages(problem, exactly=True, ordered=True, busy=hearing)
    made = []
    for i, (p, own, heard) in enumerate(zip(plans, measured, hearing, strict=True)):
        begin, end = _span(mapping, i)
        sent = {"encode": sizes[min(end, len(sizes)) - 1], "hear": 0 if p.last else sizes[-1]}
        seconds = {"encode": float(own["encode"][begin:end].sum() + own["encode_call"][0]),
                   "hear": heard}
        made.append(dataclasses.replace(
            p, encoder=Cut(begin, end, problem.nodes - 2), seconds=seconds | p.seconds,
            sent=sent | p.sent,
            sending={kind: links.seconds(size) for kind, size in sent.items()} | p.sending))
    return made


def _span(mapping: list[int], processor: int) -> tuple[int, int]:
    """The nodes [begin, end) of a processor, which are neighbours."""
    return mapping.index(processor), len(mapping) - mapping[::-1].index(processor)


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
        begin, end = _span(mapping, p)
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
