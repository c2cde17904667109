"""What drafts bring, on paper, once it is known how many of them were right: that depends on the
text, so it is counted, while times are predicted.

A pass over several tokens of one text is a step with as many rows: all go through all layers and
through the head, weights are read once, and so is the one cache that all of them look at.
"""

import dataclasses
import math

from tfspeed.costs.prediction import Load, Predictor
from tfspeed.costs.shapes import Shape
from tfspeed.speculation import Speculation


@dataclasses.dataclass(frozen=True)
class Counted:
    """Of a generation, see `speculation.generation.Counts`.

    Attributes:
        tokens_per_pass: tokens that a pass gave in the mean.
        draft_share: of the passes, those that verified a draft.
        draft_tokens: of a draft, in the mean.
    """

    tokens_per_pass: float
    draft_share: float
    draft_tokens: float


def counted(row: dict) -> Counted | None:
    """What a row has counted; None where there was no pass: of several texts, none is drafted."""
    if not row.get("tokens_per_pass"):
        return None
    passes = row["repetitions"] * (row["new_tokens"] - 1) / row["tokens_per_pass"]
    drafts = passes * row["draft_share"]
    return Counted(row["tokens_per_pass"], row["draft_share"],
                   row["drafted_tokens"] / drafts if drafts else 0.0)


def speculative(predictor: Predictor, shape: Shape, engine: str, threads: int, load: Load,
                speculation: Speculation, found: Counted) -> dict[str, float]:
    """Latencies of one text. To verify and to draft is not shared with anything: they add up."""
    def step(shape: Shape, engine: str, width: float = 1) -> float:
        """Seconds of a pass; between two widths, between their times."""
        low, high = (predictor.reading(shape, engine, threads, load, count)
                     for count in (math.floor(width), math.ceil(width)))
        return low + (high - low) * (width % 1)

    times = predictor.latency(shape, engine, threads, load)
    if "tpot_s" not in times:
        return times
    drafting = 0.0
    if speculation.draft == "early_exit":
        layers = speculation.exit_layers(len(shape.layers))
        drafting = step(dataclasses.replace(shape, layers=shape.layers[:layers],
                                            attention=shape.attention[:layers]), engine)
    elif speculation.draft == "low_bit":
        drafting = step(shape, f"fused:{speculation.draft_weights}")
    share = found.draft_share
    spent = ((1 - share) * times["tpot_s"]
             + share * (step(shape, engine, 1 + found.draft_tokens)
                        + found.draft_tokens * drafting))
    return load.whole({"ttft_s": times["ttft_s"], "tpot_s": spent / found.tokens_per_pass})
