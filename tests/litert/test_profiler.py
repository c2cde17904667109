"""Profiles of a decode step: every operator is there, named, and the sum is the step."""

import numpy as np
import pytest

from tests.conftest import tiny_decoder, tiny_recurrent
from tfspeed.engines import check_profiled, create
from tfspeed.errors import TfspeedError
from tfspeed.litert import profiler
from tfspeed.litert.graph import TfliteFile
from tfspeed.litert.weights import pack


@pytest.mark.parametrize("weights", ["float32", "float16", "int8", "int4"])
def test_every_product_has_the_name_of_its_weight(weights):
    model = tiny_decoder(hidden_dim=32, mlp_dim=64)
    parts = create(f"litert:{weights}", model).profile([[1, 2, 3], [4]])
    names = [part["name"] for part in parts]
    assert len(set(names)) == len(names)
    products = [part["name"] for part in parts if part["kind"].startswith("Fully Connected")]
    assert products == [f"block_{i}/{name}" for i in range(2) for name in (
        "attention/query_key_value", "attention/out", "mlp/up", "mlp/down")] + ["embedding"]
    assert parts[-1]["name"] == profiler.BETWEEN
    assert all(part["seconds"] >= 0 and part["calls"] == 1 for part in parts)
    assert 0 < sum(part["seconds"] for part in parts) < 1


def test_recurrent_models_have_one_too():
    parts = create("litert", tiny_recurrent("lstm")).profile([[1, 2, 3]])
    products = [part["name"] for part in parts if part["kind"].startswith("Fully Connected")]
    assert products == ["lstm_0/kernel", "lstm_0/recurrent_kernel", "lstm_1/kernel",
                        "lstm_1/recurrent_kernel", "embedding"]


def test_a_heavy_operator_takes_the_time(tmp_path):
    file = TfliteFile("test")
    graph = file.signature("both")
    x = graph.input("x", (1, 2048))
    small = pack("small", np.ones((2048, 16), np.float32), 32)
    large = pack("large", np.ones((2048, 2048), np.float32), 32)
    y = graph.fully_connected(x, large)
    graph.finish({"y": graph.fully_connected(graph.slice(y, 1, 0, 16), small)})
    file.write(tmp_path / "a.tflite")
    parts = {part["name"]: part["seconds"] for part in profiler.profile(
        tmp_path / "a.tflite", "both", {"x": np.ones((1, 2048), np.float32)}, 1)}
    assert parts["large"] > 10 * parts["small"]


def test_engines_without_one():
    with pytest.raises(TfspeedError, match="has no profile"):
        create("graph", tiny_decoder()).profile([[1]])
    with pytest.raises(TfspeedError, match="engine='xla'"):
        check_profiled("xla")
    check_profiled("litert:int8")
