"""What `--weights` says is what the file holds."""

import pytest

import strategies
from tests.conftest import tiny_decoder
from tfspeed.errors import TfspeedError
from tfspeed.export import stored


def quantized(**options):
    made = strategies.find("quantize").Options(method="rtn", smooth=False, group=0, **options)
    return strategies.create("quantize", {"quantize": made}).apply(tiny_decoder())


def test_what_a_strategy_packed_is_told():
    eight, four = quantized(), quantized(bits=4)
    assert stored.agreed(eight, "tflite", None) == stored.agreed(eight, "tflite", "int8") == "int8"
    assert stored.agreed(four, "litertlm", None) == "int4"
    for model, weights in ((eight, "int4"), (four, "int8"), (eight, "float32")):
        with pytest.raises(TfspeedError, match="packed this layer already"):
            stored.agreed(model, "tflite", weights)
    some = quantized(bits=4, targets="mlp")  # the rest is stored as the flag says
    assert stored.agreed(some, "tflite", None) == "int8"
    assert stored.agreed(some, "tflite", "int8,mlp=int4_channel") == "int8,mlp=int4_channel"


def test_what_nobody_packed_is_stored_as_asked():
    model = tiny_decoder()
    assert stored.agreed(model, "tflite", None) == "int8"
    assert stored.agreed(model, "saved_model", None) == "float32"
    assert stored.agreed(model, "tflite", "int4") == "int4"
