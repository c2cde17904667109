import subprocess
import sys

import numpy as np
import pytest

import strategies
from strategies.cluster import Options
from tests.conftest import tiny_decoder, tiny_uncached
from tfspeed.compression import copying, targets
from tfspeed.errors import TfspeedError

TOKENS = np.random.default_rng(3).integers(0, 64, (4, 24), np.int32)


def cluster(**options):
    return strategies.create("cluster", {"cluster": Options(**{"outliers": 0.0, **options})})


def matrices(model, pattern="attention|mlp"):
    return {t.name: t.matrix() for t in targets.find(model.keras_model, pattern)}


@pytest.mark.parametrize("per", ["tensor", "output", "input"])
def test_few_values_and_nothing_else_changes(per):
    model = tiny_decoder()
    made = cluster(clusters=5, per=per).apply(model)
    for matrix in matrices(made).values():
        parts = {"tensor": matrix.reshape(1, -1), "output": matrix, "input": matrix.T}[per]
        assert max(len(np.unique(part)) for part in parts) <= 5
    for was, now in zip(model.keras_model.variables, made.keras_model.variables, strict=True):
        if "kernel" not in now.path:
            assert now.value is was.value  # embedding and norms: the same memory


def test_the_largest_weights_keep_their_values():
    made = matrices(cluster(clusters=2, outliers=0.1).apply(tiny_decoder()))
    for name, matrix in matrices(tiny_decoder()).items():
        few, counts = np.unique(made[name], return_counts=True)
        few = few[counts.argsort()[-2:]]
        kept = ~np.isin(made[name], few)
        assert kept.mean() == pytest.approx(0.1, abs=0.01)
        assert np.abs(matrix[kept]).min() >= np.abs(matrix[~kept]).max()


def test_the_more_clusters_the_nearer_the_logits():
    model, errors = tiny_decoder(), []
    for clusters in (2, 8, 64, 256):
        made = cluster(clusters=clusters).apply(model)
        errors.append(np.square(model.score(TOKENS) - np.asarray(made.score(TOKENS))).mean())
    assert errors[3] < 0.2 * errors[2] < 0.1 * errors[1] < 0.1 * errors[0]


def test_convolutions_are_clustered_without_compensation():
    strategy = cluster(clusters=4)
    made = matrices(strategy.apply(tiny_uncached()), "")
    assert {name: len(np.unique(m)) <= 4 for name, m in made.items()} == {
        name: name.startswith("conv") for name in made}
    assert "conv1d" in strategy.report()[-1]


def test_chosen_targets_and_report():
    strategy = cluster(targets="mlp/down$", clusters=3)
    made = matrices(strategy.apply(tiny_decoder()), "")
    assert {n for n, m in made.items() if len(np.unique(m)) <= 3} == {"block_0/mlp/down",
                                                                     "block_1/mlp/down"}
    text = " ".join(strategy.report())
    assert "2 matrices of at most 3" in text
    assert "Deflated" in text


def test_it_is_saved_and_loads_without_tfmot(tmp_path):
    made = cluster().apply(tiny_decoder())
    made.keras_model.save(tmp_path / "clustered.keras")
    np.save(tmp_path / "expected.npy", np.asarray(made.score(TOKENS)))
    np.save(tmp_path / "tokens.npy", TOKENS)
    code = ("import sys, keras, numpy as np, tfspeed.models.decoder\n"
            f"model = keras.models.load_model(r'{tmp_path / 'clustered.keras'}')\n"
            f"logits = model(np.load(r'{tmp_path / 'tokens.npy'}'))\n"
            f"np.testing.assert_array_equal(logits, np.load(r'{tmp_path / 'expected.npy'}'))\n"
            "assert not any('tensorflow_model_optimization' in name for name in sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize(("options", "words"), [
    ({"clusters": 1}, "2 to 256"), ({"clusters": 257}, "2 to 256"), ({"init": "zeros"}, "linear"),
    ({"per": "row"}, "output"), ({"outliers": -0.1}, "share"), ({"outliers": 0.6}, "share")])
def test_bad_options(options, words):
    with pytest.raises(TfspeedError, match=words):
        cluster(**options)


def test_bad_input():
    with pytest.raises(TfspeedError, match="No layer"):
        cluster(targets="nowhere").apply(tiny_decoder())
    model = copying.copied(tiny_decoder())
    target = targets.find(model.keras_model, "block_1/mlp/down")[0]
    matrix = target.matrix()
    matrix[0, 0] = np.inf
    target.assign(matrix)
    with pytest.raises(TfspeedError, match="block_1/mlp/down"):
        cluster().apply(model)

    class Tokenizer:
        def encode(self, text):
            return [1, 2, 3]

    model = tiny_decoder()
    model.tokenizer = Tokenizer()
    with pytest.raises(TfspeedError, match="too short"):
        cluster().apply(model, "short")
