"""Layers of one decoder may have different widths and heads: what pruning leaves."""

import json

import numpy as np
import pytest

import tfspeed
from tests.conftest import tiny_decoder
from tfspeed.errors import TfspeedError
from tfspeed.models.config import DecoderConfig
from tfspeed.models.hf_writer import config_to_hf

UNEVEN = {"mlp_dims": (32, 20), "layer_kv_heads": (1, 2)}
TOKENS = np.arange(12, dtype=np.int32)[None]


def test_a_keras_file_gives_the_same_logits(tmp_path):
    model = tiny_decoder(**UNEVEN)
    model.keras_model.save(tmp_path / "uneven.keras")
    again = tfspeed.load(tmp_path / "uneven.keras")
    assert again.config == model.config
    np.testing.assert_array_equal(np.asarray(again.score(TOKENS)), np.asarray(model.score(TOKENS)))


def test_counts_follow_the_layers():
    model = tiny_decoder(**UNEVEN)
    c = model.config
    assert c.parameter_count == model.parameters
    assert model.parameters < tiny_decoder().parameters
    assert c.cache_bytes(3, 10, 4) == 2 * 3 * 10 * (1 + 2) * c.head_dim * 4
    assert [c.layer(i).mlp_dim for i in range(2)] == [32, 20]
    assert [(c.layer(i).num_heads, c.layer(i).num_kv_heads) for i in range(2)] == [(2, 1), (4, 2)]
    assert DecoderConfig.from_dict(json.loads(json.dumps(c.to_dict()))) == c


@pytest.mark.parametrize("changes", [
    {"mlp_dims": (32,)}, {"mlp_dims": (16, 20)}, {"mlp_dims": (32, 0)}, {"mlp_dims": (32, 1.5)},
    {"layer_kv_heads": (2, 3)}, {"layer_kv_heads": (2, 1), "positions": "alibi"}])
def test_sizes_that_are_none_are_refused(changes):
    with pytest.raises(TfspeedError, match=next(iter(changes))):
        tiny_decoder(**changes)


def test_a_hugging_face_config_has_one_width():
    with pytest.raises(TfspeedError, match="layers of different sizes"):
        config_to_hf(tiny_decoder(**UNEVEN).config)
