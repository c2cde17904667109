"""What it costs to take neurons, groups of heads and layers out of a `Decoder`, and which to take.

The error that the least useful units of a layer leave after a refit is counted in nats: a trial in
each layer measures the KL divergence of the next token's distribution, which sets the scale.
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfspeed.compression.block_reader import (
    Grams,
    Reader,
    layers_of,
    matrix_of,
    spread,
)
from tfspeed.compression.structured import cheapest, columns_of, refitted, removal
from tfspeed.models.config import DecoderConfig
from tfspeed.models.conversion import replaced_calls
from tfspeed.models.decoder import Decoder

_WINDOWS = 24  # of the calibration text at most, spread over it
_TRIAL_WINDOWS = 2  # of these, for KL divergences
_TRIAL = 0.25  # share of a layer's units that a trial takes out
_LARGEST = 0.75  # that may go from one layer
PLACES = {"heads": "attention", "neurons": "mlp", "cross": "cross"}  # of each kind of unit


@dataclasses.dataclass
class Cut:
    """What to take out: neurons and groups of heads by layer, and layers."""

    neurons: dict[int, int]
    heads: dict[int, int]
    layers: list[int]


def allowed_layers(config: DecoderConfig, kind: str, pattern: str) -> list[int]:
    """The layers whose name, `block_3/mlp`, `block_3/attention` or `block_3`, is matched."""
    place = f"/{PLACES[kind]}" if kind in PLACES else ""
    return [i for i in range(config.num_layers) if re.search(pattern, f"block_{i}{place}")]


def unit(config: DecoderConfig, kind: str, multiple: int) -> tuple[int, int, int]:
    """Of a layer: columns of a unit, units that go at a time, and parameters that these hold."""
    c = config
    if kind == "neurons":
        step = multiple
        while c.mlp_dim < 4 * step and step > 1:
            step //= 2
        widths = 2 if c.gated_mlp else 1
        return 1, step, step * (c.hidden_dim * (widths + 1) + c.mlp_bias * widths)
    heads = c.num_heads // c.num_kv_heads
    return (heads * c.head_dim, 1,
            c.head_dim * (2 * heads + 2) * c.hidden_dim + c.qkv_bias * c.head_dim * (heads + 2))


class Survey:
    """What units cost, in nats a token.

    Attributes:
        curves: by kind and layer, the divergence after each step.
        sizes: by kind and layer, the parameters that a step frees.
    """

    def __init__(self, decoder: Decoder, tokens: np.ndarray):
        self.decoder, self.curves, self.sizes = decoder, {}, {}
        self.reader = Reader(decoder, spread(tokens, _WINDOWS))
        self._trial = self.reader.x[:_TRIAL_WINDOWS]
        self.reference = self.reader.log_p(self._trial, 0)

    def units(self, wanted: dict[str, list[int]], multiple: int) -> None:
        """Fills the curves of the layers wanted of each kind."""
        x = self.reader.x
        last = max((i for layers in wanted.values() for i in layers), default=-1)
        for i in range(last + 1):
            kinds = [kind for kind, layers in wanted.items() if i in layers]
            grams = Grams(self.decoder.blocks[i], kinds)
            with grams.watching():
                after = self.reader.through(i, x, see=grams.see)
            for kind in kinds:
                self._survey(kind, i, x, grams.of(kind), multiple)
            x = after

    def _survey(self, kind, i, x, gram, multiple) -> None:
        def divergence():
            out = self.reader.through(i, x[:_TRIAL_WINDOWS])
            return self.reader.divergence(self.reference, out, i + 1)

        block = self.decoder.blocks[i]
        found = curve(block, kind, gram, multiple, divergence)
        if found is not None:
            self.curves[kind, i] = found
            self.sizes[kind, i] = unit(block.config, kind, multiple)[2]

    def without(self, layers) -> float:
        """The divergence when layers are left out."""
        first = min(layers)
        x = self._trial
        for i in range(first):
            x = self.reader.through(i, x)
        return self.reader.divergence(self.reference, x, first, without=set(layers))


def reach(config: DecoderConfig, wanted: dict[str, list[int]], multiple: int) -> int:
    """The most parameters that can go from the layers wanted of each kind."""
    most = 0
    for kind, layers in wanted.items():
        if kind == "layers":
            sizes = sorted((config.layer(i).block_parameters for i in layers), reverse=True)
            most += sum(sizes[:config.num_layers - 1])
            continue
        for i in layers:
            c = config.layer(i)
            _, step, size = unit(c, kind, multiple)
            units = c.mlp_dim if kind == "neurons" else c.num_kv_heads
            most += steps_of(units, step, kind) * size
    return most


def steps_of(units: int, step: int, kind: str) -> int:
    """How many steps a layer of so many units may take: some must stay."""
    return int(_LARGEST * units / step) if kind == "neurons" else (units - 1) // step


def curve(block, kind: str, gram: np.ndarray, multiple: int,
          divergence: Callable[[], float]) -> np.ndarray | None:
    """What each step out of a place of a block costs, nats a token; None where none may be taken.

    Args:
        gram: of what reads the place's units, see `Grams`.
        divergence: of the model as it is, asked while a trial is in place.
    """
    width, step, _ = unit(block.attention.config, kind, multiple)
    dense = layers_of(block)[kind]
    matrix = matrix_of(dense)
    units = dense.kernel.shape[0] // width
    gone, errors = removal(matrix, gram, units, step, steps_of(units, step, kind))
    if not len(gone):
        return None
    tried = _tried(errors, units, step)
    left = _product_without(dense, matrix, gram, columns_of(gone[:tried].reshape(-1), width))
    with replaced_calls((dense, lambda _: left)):
        cost = max(divergence(), 1e-9)
    return errors * (cost / max(errors[tried - 1], 1e-30))


def _tried(errors: np.ndarray, units: int, step: int) -> int:
    """Steps that a trial takes, whose divergence sets the scale of a layer's errors."""
    # Units that do nothing tell no scale.
    tried = max(int(_TRIAL * units / step), 1 + np.searchsorted(errors, 1e-4 * errors[-1]))
    return min(tried, len(errors))


def _product_without(dense, matrix: np.ndarray, gram: np.ndarray, columns: np.ndarray):
    """A call like that of `dense` with its matrix, `[out, in]` and perhaps a bias, refitted without
    some columns."""
    kept = np.setdiff1d(np.arange(len(gram)), columns)
    left = np.zeros_like(matrix)
    left[:, kept] = refitted(matrix, gram, kept)
    kernel = tf.constant(left[:, :dense.kernel.shape[0]].T, dense.compute_dtype)
    bias = tf.constant(left[:, -1], dense.compute_dtype) if dense.use_bias else 0
    return lambda x: x @ kernel + bias


def choose_units(survey: Survey, goal: int) -> Cut:
    """The cheapest steps that free at least `goal` parameters, as far as there are any."""
    taken = cheapest(survey.curves, survey.sizes, goal)
    cut = Cut({}, {}, [])
    for (kind, i), steps in taken.items():
        if steps:
            getattr(cut, kind)[i] = steps
    return cut


def choose_layers(survey: Survey, allowed: list[int], goal: int) -> list[int]:
    """Leaves out one layer after another, each time the one that costs least with those before
    it gone. A layer costs no less for others' going, nearly always: those whose old cost is over
    the best new one are not tried again."""
    size, gone = survey.decoder.config, []
    costs = {i: 0.0 for i in allowed}
    freed = 0
    while freed < goal and costs and len(gone) < size.num_layers - 1:
        best, fresh = None, {}
        for i in sorted(costs, key=lambda i: (costs[i], i)):
            if best is not None and costs[i] >= fresh[best]:
                break
            fresh[i] = survey.without([*gone, i])
            if best is None or fresh[i] < fresh[best]:
                best = i
        costs |= fresh
        gone.append(best)
        costs.pop(best)
        freed += size.layer(best).block_parameters
    return sorted(gone)
