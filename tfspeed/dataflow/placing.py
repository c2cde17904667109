"""Who gets which layers: by what they and the links take, on all workers at once."""

import dataclasses

import numpy as np
import tensorflow as tf

from tfspeed.dataflow import plan, ring, timing, traced
from tfspeed.dataflow.graph import Graph
from tfspeed.dataflow.plan import StagePlan, Work
from tfspeed.dataflow.problem import Links


@dataclasses.dataclass(frozen=True)
class Placed:
    """The same on all workers, but for `chains` and `operators`, of the leader alone: see
    `traced.chains`. Nodes have the seconds of the mapping."""

    plans: list[StagePlan]
    chains: dict[str, Graph]
    operators: tf.Graph | None


def place(factory, team, work: Work) -> Placed:
    """Called by all workers together.

    Args:
        factory: see `factory.stages`.
        team: a `ring.Threads` or `ring.Workers`.
    """
    decoder, chains, operators, sizes = factory.decoder, {}, None, None
    if team.index == 0:
        chains, operators = traced.chains(decoder, work, factory.source(work))
        sizes = {kind: [made.edges[i, i + 1] for i in range(len(made.nodes) - 1)]
                 for kind, made in chains.items()}
    sizes = team.share(sizes)[0]
    measured = timing.node_seconds(factory, work, team.count)
    measured = team.share({name: values.tolist() for name, values in measured.items()})
    measured = timing.evened([{name: np.array(values) for name, values in m.items()}
                              for m in measured])
    for kind, made in chains.items():
        for node, seconds in zip(made.nodes, measured[0][kind], strict=True):
            node.seconds = seconds
    # A last stage without its head gives hidden states where logits would be.
    shared_head = decoder.head is None and (
        decoder.config.vocabulary_size >= decoder.config.hidden_dim)
    return Placed(plan.make(measured, sizes, _links(team), work, shared_head), chains, operators)


def _links(team) -> Links:
    """Timed by the leader."""
    made = None
    if team.index == 0:
        team.start([None] * team.count)
        try:
            made = timing.link(lambda data: _echo(team, data), team.count)
        finally:
            team.outbox.put({"kind": ring.END})
            team.inbox.get()
            team.ended()
    else:
        team.tell()
        ring.serve(None, team.inbox, team.outbox)
    return Links(**team.share(dataclasses.asdict(made) if made else None)[0])


def _echo(team, data: np.ndarray) -> None:
    team.outbox.put({"kind": ring.ECHO}, [data])
    team.inbox.get()
