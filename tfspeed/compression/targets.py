"""The layers with a matrix, in any Keras 3 model, under one name and as `[out, in]`."""

import dataclasses
import re

import keras
import numpy as np

from tfspeed.compression.copying import renew
from tfspeed.errors import TfspeedError
from tfspeed.memory import values
from tfspeed.models.conversion import Converted, named_layers

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
KINDS = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Embedding, *_CONVOLUTIONS)


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """One layer.

    Attributes:
        name: its names from the model down, such as `block_3/mlp/down`.
        order: of the kernel's axes, those of `out` before those of `in`.
        outputs: how many of them are of `out`.
        plain: whether the layer is `y = W x`, so that `x` can be observed.
    """

    name: str
    layer: keras.layers.Layer
    order: tuple[int, ...]
    outputs: int
    plain: bool

    @property
    def variable(self):
        """The Keras variable that holds the kernel, or the table."""
        if isinstance(self.layer, keras.layers.Embedding):
            return self.layer._embeddings
        return self.layer._kernel

    @property
    def kind(self) -> str:
        """The last part of the name: what reports count by."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`, without reading the values."""
        sizes = [self.variable.shape[axis] for axis in self.order]
        return int(np.prod(sizes[:self.outputs])), int(np.prod(sizes[self.outputs:]))

    def matrix(self, copy: bool = True) -> np.ndarray:
        """float32 `[out, in]`; of an Embedding `[vocabulary, dim]`.

        Args:
            copy: False where it is only read: a table then takes no room of its own.

        Raises:
            TfspeedError: it holds NaN or infinite values.
        """
        array = np.asarray(values(self.variable), np.float32)
        if not np.isfinite(array).all():
            raise TfspeedError("A weight is not finite.", tensor=self.name,
                               values=int((~np.isfinite(array)).sum()),
                               hint="The model file is damaged, or its training diverged.")
        return np.array(array.transpose(self.order).reshape(self.shape), np.float32, order="C",
                        copy=copy or None)

    def assign(self, matrix: np.ndarray) -> None:
        """Takes `[out, in]`. The layer must be one of a copy: its variable gets new memory."""
        renew(self.variable, self.unfolded(matrix))

    def unfolded(self, matrix: np.ndarray) -> np.ndarray:
        """`[out, in]` in the shape of the kernel."""
        sizes = [self.variable.shape[axis] for axis in self.order]
        return np.ascontiguousarray(matrix.reshape(sizes).transpose(np.argsort(self.order)))

    def rows(self, x) -> np.ndarray:
        """What the layer reads, `x`, as float32 `[tokens, in]`."""
        array = np.asarray(keras.ops.convert_to_numpy(x), np.float32)
        if isinstance(self.layer, keras.layers.EinsumDense):
            axes = _contracted_inputs(self.layer.equation, array.ndim)
            array = np.moveaxis(array, axes, range(array.ndim - len(axes), array.ndim))
        return array.reshape(-1, self.shape[1])


def find(keras_model: keras.Model, pattern: str = "", kinds: tuple = KINDS) -> list[Target]:
    """The layers whose name a regular expression is found in, in the model's order.

    Raises:
        TfspeedError: the pattern is none, or is found in no layer's name; or all layers are
            packed already.
    """
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise TfspeedError("Layers are chosen by a regular expression.", pattern=pattern,
                           cause=str(error)) from error
    every = [_target(name, layer) for name, layer in named_layers(keras_model)
             if isinstance(layer, kinds) and not isinstance(layer, Converted)]
    found = [target for target in every if wanted.search(target.name)]
    if not found:
        taken = [layer.name for _, layer in named_layers(keras_model)
                 if isinstance(layer, Converted)]
        if taken and not every:
            raise TfspeedError("All matrices of the model have another form already: packed, or "
                               "split in two.", layers=sorted(set(taken))[:8],
                               hint="Name this strategy before the one that packs or splits them.")
        known = sorted({re.sub(r"\d+", "0", target.name) for target in every})
        raise TfspeedError("No layer of the model matches.", pattern=pattern,
                           layers=known[:8] or "none that has a matrix",
                           hint="A pattern is a regular expression, found anywhere in the name.")
    return found


def inner(model, pattern: str = "") -> list[Target]:
    """`find`; without a pattern all but embeddings and the head of a `LanguageModel`.

    Raises:
        TfspeedError: see `find`, or nothing is left.
    """
    found = find(model.keras_model, pattern)
    if pattern:
        return found
    every = found
    if found[-1].shape[0] == model.vocabulary_size:
        found = found[:-1]
    found = [target for target in found if not isinstance(target.layer, keras.layers.Embedding)]
    if not found:
        raise TfspeedError("The model has no layer but embeddings and a head.",
                           layers=[target.name for target in every],
                           hint="Name those that are meant with the option `targets`.")
    return found


def _target(name: str, layer) -> Target:
    if isinstance(layer, keras.layers.Embedding):
        return Target(name, layer, (0, 1), 1, False)
    if isinstance(layer, keras.layers.EinsumDense):
        given, kernel, result = _labels(layer.equation)
        out = [i for i, label in enumerate(kernel) if label in result]
        inner = [i for i, label in enumerate(kernel) if label not in result]
        plain = bool(inner) and not any(kernel[i] in given for i in out)
        return Target(name, layer, (*out, *inner), len(out), plain)
    rank = len(layer._kernel.shape)
    plain = isinstance(layer, keras.layers.Dense)
    return Target(name, layer, (rank - 1, *range(rank - 1)), 1, plain)


def _labels(equation: str) -> tuple[str, str, str]:
    """The labels of input, kernel and output."""
    given, result = equation.replace(" ", "").replace("...", "").split("->")
    given, kernel = given.split(",")
    return given, kernel, result


def _contracted_inputs(equation: str, rank: int) -> list[int]:
    """Axes of the input that are summed over, in the kernel's order."""
    given, kernel, result = _labels(equation)
    # An ellipsis stands in front or behind; axes are counted from the side without it.
    before = equation.split(",")[0].strip().startswith("...")
    offset = rank - len(given) if before else 0
    return [given.index(label) + offset for label in kernel if label not in result]
