"""Every family's lowered graph computes what the Keras decoder computes."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from tests.conftest import tiny_decoder
from tests.engines.test_engines import generate, reference
from tfspeed.engines import create
from tfspeed.engines.litert import LiteRtEngine
from tfspeed.errors import TfspeedError
from tfspeed.litert.decoder import Lowering
from tfspeed.litert.formats import Formats
from tfspeed.litert.graph import TfliteFile
from tfspeed.litert.pack import Packer
from tfspeed.litert.session import capacities
from tfspeed.models.config import RopeConfig

FAMILIES = {
    "llama": {},
    "untied, biases": {"tied_embeddings": False, "qkv_bias": True, "attention_out_bias": True,
                       "mlp_bias": True, "head_bias": True},
    "qwen3": {"qk_norm": True, "num_kv_heads": 1},
    "gemma3": {"qk_norm": True, "post_norms": True, "embedding_scale": 4.0,
               "activation": "gelu_tanh", "sliding_window": 5, "sliding_layers": (True, False),
               "local_rope": RopeConfig(theta=100.0)},
    "gemma2": {"post_norms": True, "attention_softcap": 5.0, "logit_softcap": 3.0,
               "attention_scale": 0.3},
    "mistral": {"sliding_window": 4},
    "smollm3": {"rope_layers": (True, False)},
    "gpt2": {"positions": "learned", "norm": "layer", "gated_mlp": False,
             "activation": "gelu_tanh", "qkv_bias": True, "attention_out_bias": True,
             "mlp_bias": True, "num_kv_heads": 4},
    "opt": {"positions": "learned", "norm": "layer", "gated_mlp": False, "activation": "relu"},
    "gpt_neox": {"norm": "layer", "gated_mlp": False, "activation": "gelu", "rope_fraction": 0.5,
                 "parallel_residual": True, "num_kv_heads": 4, "tied_embeddings": False},
    "falcon": {"positions": "alibi", "norm": "layer", "gated_mlp": False, "activation": "gelu",
               "parallel_residual": True, "shared_norm": True, "num_kv_heads": 1},
    "pruned": {"mlp_dims": (18, 32), "layer_kv_heads": (2, 1), "sliding_window": 4,
               "sliding_layers": (True, False)},
    "pruned, plain": {"mlp_dims": (32, 7), "gated_mlp": False, "activation": "gelu",
                      "mlp_bias": True, "qkv_bias": True, "layer_kv_heads": (1, 2),
                      "parallel_residual": True, "qk_norm": True},
    "longrope": {"rope": RopeConfig(factors=(1.0, 2.0), long_factors=(3.0, 4.0),
                                    original_context=24, attention_factor=1.2)},
}
PROMPTS = [[5, 9, 2, 33, 8, 1], [7, 3], list(range(1, 12))]


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_gives_the_references_tokens(family):
    model = tiny_decoder(**FAMILIES[family])
    engine = create("litert", model)
    count = 4 if family == "longrope" else 12  # past its original context keys stay as they were
    np.testing.assert_array_equal(generate(engine, PROMPTS, count),
                                  reference(model, PROMPTS, count))
    for prompt in PROMPTS:
        np.testing.assert_array_equal(generate(engine, [prompt], count),
                                      reference(model, [prompt], count))


@pytest.mark.parametrize("weights", ["float16", "int8", "int4", "int4_channel",
                                     "int4,head=int4"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "falcon", "untied, biases"])
def test_fewer_bits_stay_near(family, weights):
    model = tiny_decoder(**FAMILIES[family], hidden_dim=32, mlp_dim=64)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 20)).astype(np.int32)
    expected = np.asarray(model.score(tokens))
    engine = create(f"litert:{weights}", model)
    error = np.abs(engine.score(tokens) - expected).mean() / np.abs(expected).mean()
    assert error < {"float16": 0.005, "int8": 0.15}.get(weights, 0.6)
    assert engine.weights_bytes < create("litert", model).weights_bytes
    assert generate(engine, PROMPTS, 4).shape == (3, 4)


def test_only_builtin_operators():
    """No Flex, no custom operator: every operator is one that any TFLite runtime has."""
    for family in FAMILIES:
        model = tiny_decoder(**FAMILIES[family])
        file = TfliteFile("test")
        packed = Packer(model.keras_model, Formats("float32")).pack()
        Lowering(file, model.keras_model.config, packed, "decode", 2, 1, 32).write(True)
        assert schema.BuiltinOperator.CUSTOM not in file.operators


def test_a_cache_grows_while_a_text_does(monkeypatch):
    monkeypatch.setattr("tfspeed.litert.session.CAPACITIES", (8, 16))
    monkeypatch.setattr("tfspeed.litert.session.PREFILLS", (2, 4))
    model = tiny_decoder()
    engine = create("litert", model)
    np.testing.assert_array_equal(generate(engine, PROMPTS, 60), reference(model, PROMPTS, 60))
    assert engine.traces == 1


def test_generations_that_overlap_do_not_share_a_cache():
    model = tiny_decoder()
    engine = create("litert", model)
    first, second = engine.generate([PROMPTS[0]], 8), engine.generate([PROMPTS[2]], 8)
    rows = np.asarray([(int(a[0]), int(b[0])) for a, b in zip(first, second, strict=True)]).T
    np.testing.assert_array_equal(rows[0], reference(model, [PROMPTS[0]], 8)[0])
    np.testing.assert_array_equal(rows[1], reference(model, [PROMPTS[2]], 8)[0])


def test_capacities_double_and_stop_where_the_angles_change():
    config = tiny_decoder().keras_model.config
    assert capacities(config, 700) == [256, 512, 1024]
    long = tiny_decoder(**FAMILIES["longrope"]).keras_model.config
    assert capacities(long, 30) == [24, 256]


def test_a_tied_table_is_stored_once():
    model = tiny_decoder()
    for weights, tables in (("int8", 1), ("int8,head=int4", 2)):
        packed = LiteRtEngine(model, weights)._packed
        assert len({id(packed.embedding), id(packed.head.weight)}) == tables
        assert sum(w.name in ("embedding", "head") for w in packed.weights) == tables


def test_a_layer_without_a_form_is_named():
    import keras
    model = tiny_decoder()
    block = model.keras_model.blocks[1]
    block.mlp.down.activation = keras.activations.tanh
    with pytest.raises(TfspeedError, match=r"layer='?.*down.*type='Dense'"):
        create("litert", model)
