"""The peak of `scripts/export.py` on paper: what is resident while a model is packed and written,
and while the file that was written runs beside the float32 model.

The second is the most, but where integers are rounded with much calibration text: the variables,
the functions that score the reference, what the artifact's runtime holds of its file, what
TensorFlow keeps of the rounding, and logits of a window, a few copies of each side.
"""

import contextlib

from tfspeed.costs import memory, shapes
from tfspeed.costs.shapes import Shape
from tfspeed.errors import TfspeedError
from tfspeed.litert.formats import Formats

_WINDOW = 256  # tokens, see measure/experiment.py
# Fitted to processes that exported SmolLM2-135M and glassllm (BUILD.md): copies of a window's
# logits, float32; functions once and a layer; what a format's runtime takes, once and times the
# weights in the file: of floats, of integers.
_LOGITS = 5
_FUNCTIONS = 35e6, 2.3e6
_RUNNING = {"tflite": (0, 1.42, 1.78), "litertlm": (0, 2.0, 2.4),
            "saved_model": (70e6, 1.72, None), "keras": (70e6, 2.06, None)}


def exporting(shape: Shape, form: str, weights: str) -> float | None:
    """Bytes resident at the most; None where it is not known.

    Args:
        form: of `export.FORMATS`.
        weights: see `litert.formats.Formats`.
    """
    once, floats, integers = _RUNNING.get(form, (None,) * 3)
    formats = Formats(weights)
    times = integers if formats.quantized else floats
    if times is None or formats.fewest_bits == 16:  # halves were never measured
        return None
    stored, loaded = shape.stored(formats), memory.RUNTIME_BYTES + memory.variable_bytes(shape)
    rounding = memory.rounding(shape, stored) if formats.quantized else {}
    functions = _FUNCTIONS[0] + _FUNCTIONS[1] * len(shape.layers)
    running = (loaded + functions + _LOGITS * 4 * _WINDOW * shape.vocabulary + once
               + times * stored.step_weight_bytes + rounding.get("kept", 0.0))
    return max(running, loaded + rounding.get("rounding", 0.0))


def told(peak: float, model, reference, form: str, weights: str) -> str:
    """What an export says of its peak, and of how far the paper was from it: of a model that no
    strategy has changed."""
    said, expected = f"{peak / 1e9:.2f} GB at its peak", None
    if model is reference:
        with contextlib.suppress(TfspeedError):  # no decoder: its costs are not known
            expected = exporting(shapes.of(model), form, weights)
    if expected is None:
        return said
    return f"{said} ({expected / 1e9:.2f} GB predicted, {expected / peak - 1:+.0%})"
