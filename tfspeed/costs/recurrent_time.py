"""How long a prompt and a step take in a recurrent model: a prompt is as many steps, one after the
other, without the output layer.

Nothing is fitted to it. Products take what a decoder's do with as many rows; beside them a layer's
step costs what a decoder's layer costs there. Each layer reads a whole prompt before the next one
does (`graph`, `xla`), so its weights come from the cache; under `litert` all layers read a token.
Small layers lie in a nearer cache than products are timed from: their prompts are predicted to take
up to three times as long as they do (BUILD.md).
"""

from tfspeed.costs.compiled_time import CompiledTime
from tfspeed.costs.fused_time import reached
from tfspeed.costs.litert_time import LitertTime
from tfspeed.costs.shapes import Shape
from tfspeed.engines.base import bucket


def latency(made: CompiledTime | LitertTime, shape: Shape, batch: int,
            prompt: int) -> tuple[float, float]:
    """Seconds to the first token, and of each of those after it."""
    if isinstance(made, LitertTime):
        token, head = _litert(made, shape, batch)
        return prompt * token + head, token + head
    step = _compiled(made, shape, batch, 1, "step")
    return _compiled(made, shape, batch, bucket(prompt), "prefill"), step


def _compiled(made: CompiledTime, shape: Shape, batch: int, length: int, kind: str) -> float:
    c, products, between = made.constants, 0.0, 0.0
    for matrices in shape.layers:
        read = sum(m.nbytes for m in matrices) if length > 1 else shape.step_weight_bytes
        products += length * sum(made.product(m, batch, read) for m in matrices)
        width = sum(m.inputs + m.outputs for m in matrices)
        between += length * (c["layer_step"] + batch * width * c["value_step"])
    products += made.product(shape.head, batch, shape.step_weight_bytes, True)
    return (c[f"call_{kind}"] + c["value_step"] * batch * shape.vocabulary
            + c[f"products_{kind}"] * products + between)


def _litert(made: LitertTime, shape: Shape, batch: int) -> tuple[float, float]:
    """Seconds of a token without the output layer, and of that."""
    c = made.constants
    speed = reached(c, made.bandwidth, shape.step_weight_bytes)
    token = c["call"]
    for matrices in shape.layers:
        width = sum(m.inputs + m.outputs for m in matrices)
        token += (c["layer_step"] + batch * width * c["value_step"] / made.threads
                  + sum(made.product(m, batch, speed) for m in matrices))
    return token, (made.product(shape.head, batch, speed)
                   + c["choose"] * batch * shape.vocabulary)
