"""The peak of `scripts/export.py` on paper: what is resident while a model is packed and written,
and while the file that was written runs beside the float32 model.

The second is the most, but where integers are rounded with much calibration text: the variables,
the functions that score the reference, what the artifact's runtime holds of its file, what
TensorFlow keeps of the rounding, and logits of a window, a few copies of each side. LiteRT has a
`.tflite` as the engine has it; TensorFlow has a SavedModel's weights once and the graphs of four
signatures; of a `.keras` file nearly two copies were seen.
"""

import contextlib

from tfspeed.costs import memory, origin, shapes
from tfspeed.costs.shapes import Shape
from tfspeed.errors import TfspeedError
from tfspeed.litert.formats import Formats

_WINDOW = 256  # tokens, see measure/experiment.py
# Fitted to processes that exported SmolLM2-135M and glassllm (BUILD.md): copies of a window's
# logits, float32; functions once and a layer; a bundle's weights over those of a `.tflite`; and
# what the others' runtimes take, once, a layer, and times the weights in the file.
_LOGITS = 4
_FUNCTIONS = 35e6, 2.3e6
_BUNDLE = 0.6
_TRACED = {"saved_model": (79e6, 13.8e6, 1.0), "keras": (87e6, 0.0, 2.1)}


def exporting(shape: Shape, form: str, weights: str,
              tokens: int = memory.CALIBRATION_TOKENS) -> float | None:
    """Bytes resident at the most; None where it is not known.

    Args:
        form: of `export.FORMATS`.
        weights: see `litert.formats.Formats`.
        tokens: of the text that integers are rounded with.
    """
    formats = Formats(weights)
    if formats.fewest_bits == 16:  # halves were never measured
        return None
    stored = shape.stored(formats)
    artifact = _running(shape, stored, form, formats.quantized)
    if artifact is None:
        return None
    loaded = memory.RUNTIME_BYTES + memory.variable_bytes(shape) + memory.left(shape)
    rounding = memory.rounding(shape, stored, tokens) if formats.quantized else {}
    functions = _FUNCTIONS[0] + _FUNCTIONS[1] * len(shape.layers)
    running = (loaded + functions + _LOGITS * 4 * _WINDOW * shape.vocabulary + artifact
               + rounding.get("kept", 0.0))
    return max(running, loaded + rounding.get("rounding", 0.0))


def _running(shape: Shape, stored: Shape, form: str, quantized: bool) -> float | None:
    """What an artifact's runtime holds; None where it is not known."""
    if form in _TRACED:
        once, layer, times = _TRACED[form]
        return None if quantized else (once + layer * len(stored.layers)
                                       + times * stored.step_weight_bytes)
    if form not in ("tflite", "litertlm"):
        return None
    bundle = _BUNDLE * stored.step_weight_bytes if form == "litertlm" else 0.0
    return bundle + memory.litert_running(shape, stored, 1, _WINDOW, logits=_WINDOW)


def told(peak: float, model, reference, form: str, weights: str) -> str:
    """What an export says of its peak, and of how far the paper was from it: of a model that no
    strategy has changed."""
    said, expected = f"{peak / 1e9:.2f} GB at its peak", None
    if model is reference:
        with contextlib.suppress(TfspeedError):  # no decoder: its costs are not known
            expected = exporting(shapes.of(model), form, weights, origin.of(model).tokens)
    if expected is None:
        return said
    return f"{said} ({expected / 1e9:.2f} GB predicted, {expected / peak - 1:+.0%})"
