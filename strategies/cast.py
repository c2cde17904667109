"""Weights, activations and KV cache in float16 or bfloat16: half of float32's bytes.

What changes: the model is built again in the type, its weights are cast. Norms, angles, scores and
logits are still computed in float32, as the model has it.
Why it is faster: a decode step is bound by reading weights and cache, and both halve. A processor
with products in the type (bfloat16: AVX-512 BF16 or AMX; float16: a GPU, or AVX-512 FP16) computes
a prompt faster as well.
When it is not: without such instructions every value is turned into float32 first, which costs more
than the bytes save: on most CPUs `xla` and `graph` become slower. `litert:float16` and
`fused:float16` keep half-precision weights and compute in float32, on any CPU.
What it costs: 8 bits of precision for bfloat16, 11 for float16 (whose largest value is 65,504).
Exact: no; perplexity moves by less than a percent.
Source: bfloat16, arXiv:1905.12322; mixed precision, arXiv:1710.03740.
"""

import keras

from strategies.base import Strategy
from tfspeed import gate
from tfspeed.compression.copying import over, rebuilt, same_variables


class _Cast(Strategy):
    """`name` is the type."""

    @property
    def max_perplexity_increase(self):
        return gate.INT8

    def apply(self, model, data=None):
        changed = over(model, cast(model.keras_model, self.name))
        self._lines = [
            f"{model.weights_bytes / 1e6:.1f} MB became {changed.weights_bytes / 1e6:.1f} MB. "
            "Whether a step gets faster depends on the processor: without products in "
            f"{self.name} each value is turned into float32 first."]
        return changed


class Float16(_Cast):
    name = "float16"


class Bfloat16(_Cast):
    name = "bfloat16"


def cast(keras_model: keras.Model, dtype: str) -> keras.Model:
    """The same model with weights and activations in another type.

    Raises:
        TfspeedError: it cannot be built from its config.
    """
    made = rebuilt(keras_model, _typed(keras_model.get_config(), dtype))
    for new, old in same_variables(made, keras_model):
        floating = keras.backend.is_float_dtype(old.dtype)
        # Scales of packed layers keep their type, as all that is not of the old float type.
        new._initialize(old.value if new.dtype == old.dtype or not floating
                        else keras.ops.cast(old, new.dtype))
        new._initializer = None
    return made


def _typed(config, dtype: str):
    """A config whose float32 policies are of another type."""
    if isinstance(config, list | tuple):
        return type(config)(_typed(value, dtype) for value in config)
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy":
        name = config["config"]["name"]
        return {**config, "config": {"name": dtype if name == "float32" else name}}
    return {key: dtype if key == "dtype" and value == "float32" else _typed(value, dtype)
            for key, value in config.items()}
