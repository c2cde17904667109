"""The peak of an export on paper."""

import dataclasses

import pytest

from tests.conftest import tiny_decoder, tiny_recurrent
from tfspeed.costs import cases, export_memory, shapes

SHAPE = shapes.decoder(cases.MODELS["gpt2-85m"])


def test_what_is_written_and_what_was_loaded_are_held():
    floats, eight = (export_memory.exporting(SHAPE, "tflite", weights)
                     for weights in ("float32", "int8"))
    assert min(floats, eight) > 670e6 + 4 * SHAPE.parameters  # the float model stays
    assert export_memory.exporting(SHAPE, "litertlm", "float32") > floats
    saved = export_memory.exporting(SHAPE, "saved_model", "float32")
    assert saved < export_memory.exporting(SHAPE, "keras", "float32")


def test_a_saved_model_has_the_graphs_of_every_layer():
    deep = shapes.decoder(dataclasses.replace(cases.MODELS["gpt2-85m"], num_layers=30,
                                              mlp_dim=32))
    more = [export_memory.exporting(shape, "saved_model", "float32")
            - export_memory.exporting(shape, "tflite", "float32") for shape in (deep, SHAPE)]
    assert more[0] > more[1] + 200e6
    assert more[0] > 0


def test_less_text_is_rounded_with_less():
    usual, one = (export_memory.exporting(SHAPE, "tflite", "int8", tokens)
                  for tokens in (20 * 256, 256))
    assert usual > one + 100e6


def test_what_was_never_measured_is_not_said():
    assert export_memory.exporting(SHAPE, "saved_model", "int8") is None
    assert export_memory.exporting(SHAPE, "tflite", "float16") is None
    assert export_memory.exporting(SHAPE, "gguf", "float32") is None


@pytest.mark.parametrize(("changed", "known"), [(False, True), (True, False)])
def test_an_export_tells_its_peak(changed, known):
    model = tiny_decoder()
    said = export_memory.told(2e9, tiny_decoder() if changed else model, model, "tflite", "int8")
    assert said.startswith("2.00 GB at its peak")
    assert ("predicted, -" in said) == known


def test_a_model_whose_costs_are_unknown_is_exported_all_the_same():
    class Unknown:
        name, keras_model = "unknown", None

    assert export_memory.told(1e9, model := Unknown(), model, "keras", "float32") == (
        "1.00 GB at its peak")
    model = tiny_recurrent("gru")
    assert "predicted" in export_memory.told(1e9, model, model, "keras", "float32")
