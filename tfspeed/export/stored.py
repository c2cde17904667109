"""How an artifact stores its weights: what `--weights` may say, and what a strategy decided before.
"""

import keras

from tfspeed.errors import TfspeedError
from tfspeed.litert.formats import Formats
from tfspeed.models.conversion import named_layers
from tfspeed.models.language_model import LanguageModel
from tfspeed.models.packed import Packed

_DEFAULT = {"tflite": "int8", "litertlm": "int8", "saved_model": "float32",
            "keras": "float32"}


def check(form: str, weights: str | None) -> None:
    """Refuses a spelling that is unknown, or unknown to the format; None is the default."""
    formats = Formats(weights or _DEFAULT[form])
    if form == "saved_model" and formats.spelled not in ("float32", "float16"):
        raise TfspeedError("A SavedModel holds its weights as float32 or float16.",
                           weights=formats.spelled, hint="Use --format=tflite for fewer bits.")
    if form == "keras" and formats.spelled != "float32":
        raise TfspeedError("A .keras file holds the weights as the strategies left them.",
                           weights=formats.spelled, hint="Use --strategy=quantize.")


def agreed(model: LanguageModel, form: str, asked: str | None) -> str:
    """How the file will say that its weights are stored: as asked for, or as a strategy has packed
    them already, which cannot be undone.

    Raises:
        TfspeedError: the two differ.
    """
    default = _DEFAULT[form]
    layers = dict(named_layers(model.keras_model))
    packed = {name: layer.packing["bits"] for name, layer in layers.items()
              if isinstance(layer, Packed)}
    if not packed or form not in ("tflite", "litertlm"):
        return asked or default
    for name, bits in packed.items():
        if asked and Formats(asked).of(name)[0] != bits:
            raise TfspeedError("A strategy has packed this layer already.", layer=name, bits=bits,
                               weights=asked, hint="Leave --weights out, or the strategy.")
    whole = not any(type(layer) is keras.layers.Dense for layer in layers.values())
    return asked or ("int4" if whole and 4 in packed.values() else default)
