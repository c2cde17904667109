"""Weights that stay in their file until the part that is needed is read."""

import numpy as np
import pytest

import strategies
from strategies.base import Composition
from tests.conftest import tiny_decoder
from tfspeed.models.hf_writer import save_hf_folder
from tfspeed.models.load import load
from tfspeed.models.unread import values


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_hf_folder(tiny_decoder(), path)
    return path


def test_values_are_read_when_they_are_asked_for(folder):
    unread, whole = load(folder, unread=True), load(folder)
    assert unread.weights_bytes == whole.weights_bytes
    for left, read in zip(unread.keras_model.variables, whole.keras_model.variables, strict=True):
        assert left._value is None
        np.testing.assert_array_equal(values(left), values(read))
        assert left._value is None


def test_shards_of_unread_weights_give_the_same_tokens(folder):
    from tfspeed import engines
    strategy = strategies.create("tensor_parallel", {
        "tensor_parallel": strategies.find("tensor_parallel").Options(replicas=2)})
    assert strategy.reads_part
    with strategy.scope():
        model = strategy.apply(load(folder, unread=strategy.reads_part))
    tokens = [list(engines.create("graph", m).generate([[1, 2, 3]], 6)) for m in (
        model, load(folder))]
    np.testing.assert_array_equal(*tokens)


@pytest.mark.parametrize(("names", "reads"), [
    (["multi_worker", "tensor_parallel"], True), (["quantize", "tensor_parallel"], False),
    (["multi_worker", "quantize"], False)])
def test_only_where_nobody_needs_all_of_them(names, reads):
    assert Composition([strategies.find(name)() for name in names]).reads_part == reads
