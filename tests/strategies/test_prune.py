import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import strategies
from strategies.prune import Options
from tests.conftest import tiny_decoder, tiny_recurrent, tiny_uncached
from tfspeed.compression import copying, targets
from tfspeed.errors import TfspeedError
from tfspeed.measure import experiment, quality
from tfspeed.models.load import load
from tfspeed.models.uncached import UncachedModel

METHODS = ("magnitude", "wanda", "sparsegpt")
TOKENS = np.random.default_rng(3).integers(0, 64, (4, 24), np.int32)


def prune(**options):
    return strategies.create("prune", {"prune": Options(**options)})


def zeros(model, pattern="attention|mlp"):
    return {t.name: float(np.mean(t.matrix() == 0))
            for t in targets.find(model.keras_model, pattern)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x2"])
def test_zeros_are_real_and_nothing_else_changes(method, pattern):
    model = tiny_decoder()
    pruned = prune(method=method, pattern=pattern).apply(model)
    assert all(share == pytest.approx(0.5, abs=0.01) for share in zeros(pruned).values())
    assert len(pruned.keras_model.variables) == len(model.keras_model.variables)
    for was, now in zip(model.keras_model.variables, pruned.keras_model.variables, strict=True):
        if "kernel" not in now.path:
            assert now.value is was.value  # embedding and norms: the same memory


def test_only_sparsegpt_moves_the_weights_that_stay():
    model = tiny_decoder()
    before = targets.find(model.keras_model, "block_0/mlp/down")[0].matrix()
    for method in METHODS:
        after = targets.find(prune(method=method).apply(model).keras_model,
                             "block_0/mlp/down")[0].matrix()
        moved = (np.abs(after - before) > 1e-4)[after != 0]
        assert moved.mean() > 0.9 if method == "sparsegpt" else not moved.any()


@pytest.mark.slow
@pytest.mark.real_model
def test_the_better_the_method_the_lower_the_perplexity():
    """Ten blocks of SmolLM2 without half of their weights, on text that was not calibrated on."""
    model = load("smollm2-135m")
    text = experiment.EVAL_TEXT.read_text(encoding="utf-8")
    windows = quality.text_windows(np.asarray(model.tokenizer.encode(text)), 256, 4)
    score = tf.function(model.score)
    rises = []
    for method in METHODS:
        pruned = prune(method=method, targets=r"block_1\d/(attention|mlp)").apply(model)
        rises.append(quality.compare(score, tf.function(pruned.score), windows)[
            "perplexity_delta"])
    assert 0 < rises[2] < rises[1] < 0.5 * rises[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [tiny_uncached, lambda: tiny_decoder(tied_embeddings=False)])
def test_other_models(make, method):
    model = make()
    strategy = prune(method=method, sparsity=0.7)
    pruned = strategy.apply(model)
    for name, share in zeros(pruned, "").items():
        left_alone = name.startswith(("embedding", "head", "dense"))
        assert share == pytest.approx(0 if left_alone else 0.7, abs=0.02), name
    if method != "magnitude" and make is tiny_uncached:
        assert "conv1d" in strategy.report()[-1]


def test_chosen_targets():
    pruned = prune(targets="mlp/down|^embedding").apply(tiny_decoder())
    assert {n for n, share in zeros(pruned, "").items() if share} == {
        "embedding", "block_0/mlp/down", "block_1/mlp/down"}


def test_the_report_counts():
    strategy = prune(sparsity=0.25, method="wanda")
    strategy.apply(tiny_decoder())
    text = " ".join(strategy.report())
    assert "8 matrices, wanda" in text
    assert "down 25.0%" in text
    assert "faster" in text


def test_it_is_saved_and_loads_without_tfmot(tmp_path):
    pruned = prune().apply(tiny_decoder())
    pruned.keras_model.save(tmp_path / "pruned.keras")
    expected = np.asarray(pruned.score(TOKENS))
    np.save(tmp_path / "expected.npy", expected)
    np.save(tmp_path / "tokens.npy", TOKENS)
    code = ("import sys, keras, numpy as np, tfspeed.models.decoder\n"
            f"model = keras.models.load_model(r'{tmp_path / 'pruned.keras'}')\n"
            f"logits = model(np.load(r'{tmp_path / 'tokens.npy'}'))\n"
            f"np.testing.assert_array_equal(logits, np.load(r'{tmp_path / 'expected.npy'}'))\n"
            "assert not any('tensorflow_model_optimization' in name for name in sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_training_with_masks_held_and_growing():
    pytest.importorskip("tfspeed.training")
    model = tiny_decoder()
    for options in ({"method": "sparsegpt"}, {"method": "magnitude", "schedule": "polynomial"}):
        strategy = prune(steps=6, **options)
        pruned = strategy.apply(model)
        assert all(share == pytest.approx(0.5, abs=0.01) for share in zeros(pruned).values())
        assert "6 steps" in " ".join(strategy.report())
        plain = prune(**{**options, "schedule": "constant"}).apply(model)
        name = "block_0/mlp/down"
        trained, untrained = (targets.find(m.keras_model, name)[0].matrix()
                              for m in (pruned, plain))
        assert np.abs(trained - untrained).max() > 1e-5


@pytest.mark.parametrize(("options", "words"), [
    ({"sparsity": 0.0}, "between 0 and 1"), ({"sparsity": 1.0}, "between 0 and 1"),
    ({"sparsity": -0.5}, "between 0 and 1"), ({"sparsity": float("nan")}, "between 0 and 1"),
    ({"method": "taylor"}, "sparsegpt"), ({"pattern": "4:2"}, "m < n"),
    ({"steps": -1}, "steps"), ({"schedule": "linear"}, "constant or polynomial"),
    ({"schedule": "polynomial"}, "magnitude"),
    ({"schedule": "polynomial", "method": "magnitude", "steps": 3}, "at least 4"),
])
def test_bad_options(options, words):
    with pytest.raises(TfspeedError, match=words):
        prune(**options)


def test_bad_input():
    with pytest.raises(TfspeedError, match="No layer"):
        prune(targets="nowhere").apply(tiny_decoder())
    with pytest.raises(TfspeedError, match=r"block_0/attention/query_key_value.*inputs=18"):
        prune(pattern="2:4").apply(tiny_decoder(hidden_dim=18))
    with pytest.raises(TfspeedError):
        prune().apply(tiny_recurrent("gru"))

    tokens = keras.Input((None,), dtype="int32")
    table = keras.layers.Embedding(64, 8)(tokens)
    bare = UncachedModel("bare", keras.Model(tokens, keras.layers.Dense(64)(table)), 32)
    with pytest.raises(TfspeedError, match="no layer but embeddings"):
        prune().apply(bare)


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_weight_is_named(method):
    model = copying.copied(tiny_decoder())
    target = targets.find(model.keras_model, "block_1/mlp/down")[0]
    matrix = target.matrix()
    matrix[0, 0] = np.nan
    target.assign(matrix)
    with pytest.raises(TfspeedError, match="block_1/mlp/down"):
        prune(method=method).apply(model)


def test_text_that_is_too_short():
    class Tokenizer:
        def encode(self, text):
            return [1, 2, 3]

    model = tiny_decoder()
    model.tokenizer = Tokenizer()
    with pytest.raises(TfspeedError, match="too short"):
        prune(method="wanda").apply(model, "short")
