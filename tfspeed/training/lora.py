"""Low-rank adapters in place of the matrices (LoRA, arXiv:2106.09685), merged at the end.

`y = W x + B A x`: only A and B learn, so that Adam's memory and the weights' gradients are small.
They live on a second copy of the student, whose other variables are the student's own.
"""

import keras
import numpy as np

from tfspeed.compression import copying, targets
from tfspeed.errors import TfspeedError
from tfspeed.models.language_model import LanguageModel

_PLAIN = (keras.layers.Dense, keras.layers.EinsumDense)


class Adapted:
    """A copy of the student with adapters.

    Attributes:
        model: scores with them.
        variables: Keras variables that learn: the adapters'.
    """

    def __init__(self, student: LanguageModel, rank: int, seed: int):
        """Raises TfspeedError: no layer takes an adapter, or the rank is none for any of them."""
        self.student = student
        self.model = copying.copied(student)
        self.layers = dense_layers(self.model.keras_model)
        if not self.layers:
            raise TfspeedError("trainable=lora needs a Dense or EinsumDense layer of float32 "
                               "weights.", model=student.name, hint="Use trainable=full.")
        most = max(_side(layer) for layer in self.layers.values())
        if rank >= most:
            raise TfspeedError("An adapter's rank must be below the smaller side of its matrix.",
                               rank=rank, largest=most - 1)
        random = np.random.default_rng(seed)
        for layer in self.layers.values():
            layer.enable_lora(min(rank, max(1, _side(layer) - 1)))
            shape = layer.lora_kernel_a.shape
            layer.lora_kernel_a.assign(
                random.normal(0, shape[0]**-0.5, shape).astype(np.float32))
            if isinstance(layer, keras.layers.Dense):
                layer.call = _narrow(layer)

    @property
    def variables(self) -> list:
        return [v for layer in self.layers.values()
                for v in (layer.lora_kernel_a, layer.lora_kernel_b)]

    def merge(self) -> None:
        """Adds the adapters to the student's matrices, which get memory of their own."""
        own = dense_layers(self.student.keras_model)
        for name, layer in self.layers.items():
            copying.renew(own[name]._kernel, layer.kernel)


def dense_layers(keras_model) -> dict[str, keras.layers.Layer]:
    """Layers with one float32 matrix, by name; not those that took another form (packed, thin)."""
    return {name: layer for name, layer in targets.named_layers(keras_model)
            if type(layer) in _PLAIN and layer.quantization_mode is None
            and keras.backend.standardize_dtype(layer._kernel.dtype) == "float32"}


def _side(layer) -> int:
    """The smaller side of a kernel, as Keras's adapters see it: `[..., in]` by `[out]`."""
    shape = layer._kernel.shape
    return min(int(np.prod(shape[:-1])), int(shape[-1]))


def _narrow(layer):
    """Keras adds B A to W, which needs the whole gradient of W; two thin products do not."""
    def call(x, training=None):
        scale = layer.lora_alpha / layer.lora_rank
        y = keras.ops.matmul(x, layer._kernel)
        y += keras.ops.matmul(keras.ops.matmul(x, layer.lora_kernel_a), layer.lora_kernel_b) * scale
        if layer.bias is not None:
            y += layer.bias
        return y if layer.activation is None else layer.activation(y)

    return call
