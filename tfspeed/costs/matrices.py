"""A layer's matrices and attention, as far as their costs go."""

import dataclasses
import functools
import math

from tfspeed.litert.weights import fitting


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A dense layer's matrix, or the two thin ones that stand in its place.

    Attributes:
        name: as `litert.formats.Formats` knows it: `block_3/mlp/down`, `head`.
        rank: of two thin ones; 0: a single one.
        group: values of a row that share a scale, for 4 and 8 bits; 0: a whole row.
        density: share of the values that are not zero. The dense kernels of all engines here
            multiply zeros too: it makes files smaller, never a step faster.
    """

    name: str
    inputs: int
    outputs: int
    rank: int = 0
    bits: int = 32
    group: int = 0
    density: float = 1.0

    @property
    def parts(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each product, in their order."""
        if self.rank:
            return [(self.inputs, self.rank), (self.rank, self.outputs)]
        return [(self.inputs, self.outputs)]

    @property
    def parameters(self) -> int:
        return sum(inputs * outputs for inputs, outputs in self.parts)

    @functools.cached_property
    def nbytes(self) -> int:
        """Values and scales: `litert/weights.py` says how they are kept."""
        return sum(inputs * outputs * self.bits // 8 + self._scale_bytes(inputs, outputs)
                   for inputs, outputs in self.parts)

    @functools.cached_property
    def panel_values(self) -> int:
        """As the fused engine keeps them: rows and columns filled up to whole panels."""
        return sum(up_to(inputs, 32) * up_to(outputs, 16) for inputs, outputs in self.parts)

    def flops(self, rows: int) -> int:
        """Of a product with `rows` rows; a multiply-add is two."""
        return 2 * rows * self.parameters

    def _scale_bytes(self, inputs: int, outputs: int) -> int:
        if self.bits > 8:
            return 0
        block = fitting(self.group, inputs) if self.group else 0
        return 2 * outputs * (inputs // block) if block else 4 * outputs


@dataclasses.dataclass(frozen=True)
class Attention:
    """Of one layer; `window` 0: it sees everything; `source_heads` look at a source, 0: none do."""

    heads: int
    kv_heads: int
    dim: int
    window: int
    source_heads: int = 0

    @property
    def layers(self) -> float:
        """As many as its layer has operators of: attention without a cache is half of one."""
        return 1.5 if self.source_heads else 1.0


def up_to(value: int, multiple: int) -> int:
    """The next multiple."""
    return math.ceil(value / multiple) * multiple
