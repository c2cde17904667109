"""Keras's own `model.quantize`, as it comes: measured here beside `quantize`, not recommended.

What changes: the Dense layers go through Keras 3.15's quantization: int8 and int4 with activations
quantized as they come, gptq and awq in four bits with calibration. Embedding and head stay float32
(Keras's int8 embedding cannot serve as a tied output layer).
Why it is faster: a quarter of the bytes, where the backend has fast integer products.
When it is not: on a CPU, where TensorFlow's integer products are slower than its float32 ones.
What it costs: gptq and awq take minutes. In Keras 3.15.1 their hooks watch `call` while the layer
being quantized runs `quantized_call`, so no input is ever seen: both give the very same weights,
those of plain rounding (tested).
Exact: no.
Source: https://keras.io/guides/quantization_overview/
"""

import dataclasses
import warnings

import keras

from strategies.base import Strategy, option
from tfspeed import gate
from tfspeed.compression import calibration, copying
from tfspeed.errors import TfspeedError
from tfspeed.models.decoder import Decoder, rotation

MODES = ("int8", "int4", "gptq", "awq")
_LENGTH, _WINDOWS = 256, 24


@dataclasses.dataclass(frozen=True)
class Options:
    mode: str = option("int8", "int8, int4, gptq or awq")
    group: int = option(32, "values that share a scale, for gptq and awq")


class KerasQuantize(Strategy):
    name = "keras_quantize"
    Options = Options

    def __init__(self, options=None):
        super().__init__(options)
        if self.options.mode not in MODES:
            raise TfspeedError(f"keras_quantize_mode must be one of {', '.join(MODES)}.",
                               keras_quantize_mode=self.options.mode)

    @property
    def max_perplexity_increase(self):
        return gate.INT8 if self.options.mode == "int8" else gate.INT4

    def apply(self, model, data=None):
        copy, mode = copying.copied(model), self.options.mode
        config = None
        if mode in ("gptq", "awq"):
            if not isinstance(copy.keras_model, Decoder):
                raise TfspeedError("Keras calibrates blocks that tfspeed knows in its decoders "
                                   "only.", model=model.name, keras_quantize_mode=mode,
                                   hint="Use int8 or int4.")
            config = self._config(copy, calibration.tokens(copy, data, _WINDOWS, _LENGTH))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                copy.keras_model.quantize(
                    mode=None if config else mode, config=config,
                    filters=lambda layer: isinstance(layer, keras.layers.Dense))
        except (ValueError, TypeError, NotImplementedError) as error:
            raise TfspeedError("Keras could not quantize this model.", keras_quantize_mode=mode,
                               cause=str(error).splitlines()[0][:200]) from error
        self._lines = [f"Keras {keras.__version__}'s quantize({mode!r}): "
                       f"{model.weights_bytes / 1e6:.1f} MB became "
                       f"{copy.weights_bytes / 1e6:.1f} MB; embedding and head stay float32."]
        if config is not None:
            self._lines.append("Its calibration sees no inputs in this version: gptq and awq are "
                               "plain rounding.")
        return copy

    def _config(self, model, tokens):
        kind = (keras.quantizers.GPTQConfig if self.options.mode == "gptq"
                else keras.quantizers.AWQConfig)
        decoder, length = model.keras_model, tokens.shape[1]
        structure = {"pre_block_layers": [decoder.embedding],
                     "sequential_blocks": [_Alone(decoder, i, length)
                                           for i in range(len(decoder.blocks))]}
        return kind(list(tokens), model.tokenizer or object(), weight_bits=4,
                    num_samples=len(tokens), sequence_length=length,
                    group_size=self.options.group, quantization_layer_structure=structure)


class _Alone(keras.layers.Layer):
    """A block that takes hidden states alone, as Keras's calibration calls it."""

    def __init__(self, decoder: Decoder, index: int, length: int):
        super().__init__(name=f"alone_{index}")
        c = decoder.config
        positions = keras.ops.arange(length, dtype="int32")[None, :]
        rope = c.layer_rope(index)
        self.block = decoder.blocks[index]
        self.given = (rotation(positions, rope, c.rotary_dim) if rope else None,
                      decoder._bias(positions, positions, c.window(index)))
        self.built = True

    def call(self, x):
        return (self.block(x, *self.given, None, None)[0],)
