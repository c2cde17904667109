"""How long a prompt and a step take in a recurrent model: a prompt is as many steps, one after the
other, without the output layer.

Nothing is fitted to it. Products take what a decoder's do with as many rows. A layer is one loop of
TensorFlow's (`graph`, `xla`), whose turns cost what its few operators do, and not what a decoder's
layer costs. It reads a whole prompt before the next layer does, so its weights come from the cache;
under `litert` all layers read a token, and the output layer is no part of what a prompt reads.
"""

from tfspeed.costs.compiled_time import CompiledTime
from tfspeed.costs.litert_time import LitertTime
from tfspeed.costs.reading import reading
from tfspeed.costs.shapes import Shape
from tfspeed.engines.base import bucket

# Of a turn of a loop around an LSTM's cell of 16 values, see BUILD.md: TensorFlow calls some twenty
# operators, XLA fuses them.
_TURN_S = {"graph": 1.5e-5, "xla": 3e-6}


def latency(made: CompiledTime | LitertTime, shape: Shape, batch: int, prompt: int,
            engine: str) -> tuple[float, float]:
    """Seconds to the first token, and of each of those after it."""
    if isinstance(made, LitertTime):
        prompt_bytes = shape.step_weight_bytes - shape.head.nbytes
        prefill = prompt * _layers(made, shape, batch, prompt_bytes)
        # The last token's output layer finds its weights in memory: the layers were read since.
        head = _head(made, shape, batch)
        return prefill + head, _layers(made, shape, batch, shape.step_weight_bytes) + head
    return (_compiled(made, shape, batch, bucket(prompt), _TURN_S[engine]),
            _compiled(made, shape, batch, 1, _TURN_S[engine]))


def _compiled(made: CompiledTime, shape: Shape, batch: int, length: int, turn: float) -> float:
    c, dtype, products, between = made.constants, shape.compute, 0.0, 0.0
    for matrices in shape.layers:
        read = sum(m.nbytes for m in matrices) if length > 1 else shape.step_weight_bytes
        products += length * sum(made.product("step", m, batch, read, dtype) for m in matrices)
        width = sum(m.inputs + m.outputs for m in matrices)
        between += length * (turn + batch * width * c["value_step"])
    products += made.product("step", shape.head, batch, shape.step_weight_bytes, dtype, True)
    return (c["call_step"] + c["value_step"] * batch * shape.vocabulary
            + products + between)


def _layers(made: LitertTime, shape: Shape, batch: int, read: int) -> float:
    """Seconds of a token without the output layer, where `read` bytes are read in turn."""
    c = made.constants
    how = reading(c, made.bandwidth, read, made.threads)
    token = c["call"]
    for matrices in shape.layers:
        width = sum(m.inputs + m.outputs for m in matrices)
        token += (c["layer_step"] + batch * width * c["value_step"] / made.threads
                  + sum(made.product(m, batch, how) for m in matrices))
    return token


def _head(made: LitertTime, shape: Shape, batch: int) -> float:
    how = reading(made.constants, made.bandwidth, shape.step_weight_bytes, made.threads)
    return (made.product(shape.head, batch, how)
            + made.constants["choose"] * batch * shape.vocabulary)
