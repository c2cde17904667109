"""A sharded decoder computes what the whole one does, and each replica holds its part only."""

import numpy as np
import pytest
import tensorflow as tf

import strategies
from strategies.tensor_parallel import Options
from tests.conftest import MODELS, tiny_decoder
from tests.workers import run_workers
from tfspeed.engines import create
from tfspeed.errors import TfspeedError

PROMPTS = [[5, 9, 2, 33], [7], list(range(1, 19))]
TOKENS = np.arange(24, dtype=np.int32).reshape(2, 12)

FAMILIES = {
    "smollm": {"num_heads": 9, "num_kv_heads": 3, "mlp_dim": 33},
    "uneven": {"mlp_dims": (32, 20), "layer_kv_heads": (1, 2)},
    "gpt2": {"positions": "learned", "norm": "layer", "gated_mlp": False, "activation": "gelu",
             "qkv_bias": True, "attention_out_bias": True, "mlp_bias": True},
    "falcon": {"positions": "alibi", "parallel_residual": True, "shared_norm": True,
               "norm": "layer", "num_kv_heads": 1, "gated_mlp": False, "activation": "gelu"},
    "neox": {"parallel_residual": True, "norm": "layer", "qkv_bias": True, "mlp_bias": True,
             "attention_out_bias": True, "rope_fraction": 0.5, "tied_embeddings": False,
             "num_kv_heads": 4, "gated_mlp": False},
    "gemma": {"post_norms": True, "qk_norm": True, "attention_softcap": 3.0, "logit_softcap": 5.0,
              "embedding_scale": 4.0, "sliding_window": 5, "sliding_layers": (True, False)},
}


def sharded(model, replicas=2, before=""):
    strategy = strategies.create(f"{before}tensor_parallel",
                                 {"tensor_parallel": Options(replicas=replicas)})
    with strategy.scope():
        return strategy, strategy.apply(model)


def filled(model):
    """Biases are zeros at first: a wrong one would not show."""
    rng = np.random.default_rng(0)
    for variable in model.keras_model.weights:
        if len(variable.shape) == 1:
            variable.assign(variable + rng.normal(size=variable.shape) * 0.3)
    return model


def generate(engine):
    return np.stack(list(engine.generate(PROMPTS, 5)), axis=1)


def check_equal(model, plain, engine="graph", tolerance=2e-5):
    found, wanted = create(engine, model), create(engine, plain)
    np.testing.assert_allclose(np.asarray(found.score(TOKENS)), np.asarray(wanted.score(TOKENS)),
                               atol=tolerance)
    np.testing.assert_array_equal(generate(found), generate(wanted))


@pytest.mark.parametrize(("family", "replicas"),
                         [*((family, 2) for family in FAMILIES), ("smollm", 3), ("falcon", 3)])
def test_every_family(family, replicas):
    model = filled(tiny_decoder(**FAMILIES[family]))
    check_equal(sharded(model, replicas)[1], model)


def test_compiled_pieces_are_shared_by_the_layers_of_one_kind():
    model = filled(tiny_decoder(num_layers=3, **FAMILIES["smollm"]))
    split = sharded(model)[1]
    engine = create("xla", split)
    np.testing.assert_array_equal(generate(engine), generate(create("graph", model)))
    assert engine.model.pieces.compiled
    assert not split.pieces.compiled  # a graph engine may hold the same model
    assert len(engine.model.pieces._functions) == 3  # attention, MLP, head
    traces = engine.traces
    list(engine.generate(PROMPTS, 4))
    assert engine.traces == traces


def test_each_replica_holds_its_part_only():
    model = tiny_decoder(**FAMILIES["smollm"])
    strategy, split = sharded(model)
    c, shard = model.config, split.config
    assert (shard.num_heads, shard.num_kv_heads, shard.mlp_dim) == (6, 2, 17)
    kernels = [v.numpy() for v in split.keras_model.blocks[0].mlp.down._kernel.value.values]
    whole = model.keras_model.blocks[0].mlp.down._kernel.numpy()
    np.testing.assert_array_equal(np.concatenate(kernels)[:33], whole)
    assert not np.concatenate(kernels)[33:].any()
    out = [v.numpy() for v in split.keras_model.blocks[1].attention.out._kernel.value.values]
    np.testing.assert_array_equal(
        np.concatenate(out)[:36], model.keras_model.blocks[1].attention.out._kernel.numpy())
    assert split.weights_bytes < model.weights_bytes
    assert split.parameters == model.parameters
    text = " ".join(strategy.report())
    assert "3 groups of heads over 2 replicas are 2 on each, 33 columns 17" in text
    padded = 1 - (3 * 8 * 4 + 33 * 3 / 1) / (4 * 8 * 4 + 34 * 3)
    assert f"{padded:.1%} of the heads and columns are zeros" in text
    assert f"sends {2 * c.num_layers * c.hidden_dim * 4} bytes" in text  # 2 (n - 1) / n of it


def test_a_state_holds_the_heads_of_the_replica():
    split = sharded(tiny_decoder())[1]
    assert split.initial_state(1, 8)["caches"][0][0].shape == (1, 1, 8, 4)
    whole = tiny_decoder()
    per_token = [2 * whole.config.num_layers * 4 * 4 * n for n in (1, 2)]  # keys and values
    assert split.step_bytes(1, 5) - split.step_bytes(1, 4) == 2 * per_token[0]
    assert whole.step_bytes(1, 5) - whole.step_bytes(1, 4) == per_token[1]


WIDE = {"hidden_dim": 32, "num_heads": 6, "num_kv_heads": 3, "head_dim": 16, "mlp_dim": 96}


@pytest.mark.parametrize(("bits", "group", "engine"),
                         [(8, -1, "graph"), (4, 32, "xla"), (4, 0, "graph")])
def test_packed_weights_are_split_as_they_lie(bits, group, engine):
    quantize = strategies.find("quantize").Options(bits=bits, group=group, method="rtn",
                                                   smooth=False)
    packed = strategies.create("quantize", {"quantize": quantize}).apply(
        filled(tiny_decoder(**WIDE, **{**FAMILIES["gpt2"], "gated_mlp": True})))
    split = sharded(packed)[1]
    down = split.keras_model.blocks[0].mlp.down
    assert type(down).__name__ == "PackedDense"
    columns = split.config.mlp_dim
    assert columns == (64 if group == 32 else 48)  # blocks of 32 are not cut
    assert down.values.shape == (32, columns if bits == 8 else columns // 2)
    check_equal(split, packed, engine)


def test_it_follows_low_rank():
    options = strategies.find("low_rank").Options(fraction=0.4)
    plain = filled(tiny_decoder(**WIDE))
    low = strategies.create("low_rank", {"low_rank": options}).apply(plain)
    kinds = {type(b.mlp.up).__name__ for b in low.keras_model.blocks} | {
        type(b.attention.out).__name__ for b in low.keras_model.blocks}
    assert "LowRankDense" in kinds
    packed = strategies.create("quantize").apply(low)
    check_equal(sharded(packed)[1], packed, tolerance=1e-4)


def test_it_takes_the_strategy_that_it_is_used_under():
    """As `multi_worker+tensor_parallel` does."""
    options = {"mirrored": strategies.find("mirrored").Options(replicas=3)}
    strategy = strategies.create("mirrored+tensor_parallel", options)
    with strategy.scope():
        model = strategy.apply(filled(tiny_decoder(**FAMILIES["smollm"])))
        assert model.placement.strategy is tf.distribute.get_strategy()
    assert len(model.placement.devices) == 3
    assert model.config.num_kv_heads == 1
    check_equal(model, filled(tiny_decoder(**FAMILIES["smollm"])))


@pytest.mark.parametrize("kind", ["lstm", "uncached"])
def test_models_without_heads_are_refused(kind):
    with pytest.raises(TfspeedError, match="heads of a decoder"):
        sharded(MODELS[kind]())


@pytest.mark.parametrize("engine", ["litert:int8", "fused"])
def test_engines_of_one_device_are_refused(engine):
    with pytest.raises(TfspeedError, match="spread over several"):
        create(engine, sharded(tiny_decoder())[1])


def test_nothing_changes_a_sharded_model():
    model = sharded(tiny_decoder())[1]
    with pytest.raises(TfspeedError, match="Name tensor_parallel last"):
        strategies.create("quantize").apply(model)
    with pytest.raises(TfspeedError, match="all its replicas at once"):
        model.score(TOKENS)


def test_bad_counts():
    with pytest.raises(TfspeedError, match="replicas=-1"):
        strategies.create("tensor_parallel", {"tensor_parallel": Options(replicas=-1)})
    with pytest.raises(TfspeedError, match="replicas=99"):
        sharded(tiny_decoder(), 99)
    with pytest.raises(TfspeedError, match="the parts are its replicas"), \
            tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        sharded(tiny_decoder(), 3)


def test_two_workers_share_one_model():
    """Real processes, TensorFlow's collectives between them; which part is whose is told by the
    strategy alone."""
    answers = run_workers(2, """
from tfspeed import devices
devices.logical_cpus = lambda count: []  # conftest's; here TensorFlow has started, on one device
import strategies
from tests.strategies.test_tensor_parallel import FAMILIES, PROMPTS, TOKENS, filled
from tests.conftest import tiny_decoder
from tfspeed.engines import create
found = {}
with strategy.scope():
    for family in ("smollm", "falcon"):
        model = strategies.create("tensor_parallel").apply(filled(tiny_decoder(**FAMILIES[family])))
        engine = create("graph", model)
        found[family] = np.stack(list(engine.generate(PROMPTS, 5)), axis=1).tolist()
    columns = model.keras_model.blocks[0].mlp.down._kernel
    local, = strategy.experimental_local_results(columns.value)
    found["columns"] = local.numpy().tolist()
print(json.dumps(found))
""")
    for family in ("smollm", "falcon"):
        plain = filled(tiny_decoder(**FAMILIES[family]))
        wanted = generate(create("graph", plain))
        for answer in answers:
            np.testing.assert_array_equal(answer[family], wanted)
    np.testing.assert_array_equal(
        np.concatenate([answer["columns"] for answer in answers]).astype(np.float32),
        plain.keras_model.blocks[0].mlp.down._kernel.numpy())
