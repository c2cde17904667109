"""`.keras` files: what a strategy made comes back, with its tokenizer, equal."""

import subprocess
import sys

import numpy as np
import pytest

import strategies
from tests.conftest import tiny_decoder, tiny_recurrent, tiny_uncached
from tests.export.conftest import TEXT, export, with_tokenizer
from tfspeed.errors import TfspeedError
from tfspeed.export import stored, verify
from tfspeed.models.load import load

TOKENS = np.random.default_rng(0).integers(0, 64, (2, 12), np.int32)


@pytest.mark.parametrize("make", [tiny_decoder, lambda: tiny_recurrent("lstm"), tiny_uncached])
def test_a_compressed_model_comes_back_equal(make, tmp_path):
    strategy = strategies.create("quantize")
    model = strategy.apply(with_tokenizer(make()))
    path = export(model, "keras", tmp_path, strategy="quantize", report=strategy.report)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        path.name, f"{path.name}.manifest.json"]
    again = load(path)
    np.testing.assert_array_equal(again.score(TOKENS), model.score(TOKENS))
    assert again.tokenizer.encode(TEXT) == model.tokenizer.encode(TEXT)
    assert again.tokenizer.chat_template == model.tokenizer.chat_template
    assert again.dtype == model.dtype
    assert verify.run(str(path)) == 0


def test_it_needs_no_tfmot(tmp_path):
    path = export(strategies.create("quantize").apply(with_tokenizer(tiny_decoder())), "keras",
                  tmp_path)
    code = ("import sys; sys.modules['tensorflow_model_optimization'] = None; "
            "sys.modules['strategies'] = None; import numpy, tfspeed; "
            f"print(tfspeed.load({str(path)!r}).score(numpy.array([[1, 2, 3]])).shape)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1, 3, 64)", done.stderr[-500:]


def test_weights_are_as_the_strategies_left_them():
    with pytest.raises(TfspeedError, match="--strategy=quantize"):
        stored.check("keras", "int8")


def test_a_file_without_a_tokenizer(tmp_path):
    path = export(tiny_decoder(), "keras", tmp_path)
    assert load(path).tokenizer is None
