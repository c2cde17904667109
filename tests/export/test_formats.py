"""Every format, of every model that has it, gives the reference's tokens out of the file alone."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import strategies
from tests.conftest import tiny_decoder, tiny_recurrent
from tests.engines.test_engines import reference
from tests.export.conftest import MODELS, TEXT, WORDS, export, with_tokenizer
from tfspeed.errors import TfspeedError
from tfspeed.export import files, litertlm, manifest, tflite, verify
from tfspeed.measure import quality
from tfspeed.models.config import RopeConfig

PROMPT = [5, 9, 2, 33, 8, 1]
# What a user of TensorFlow Serving does: nothing but TensorFlow, and the names in the signatures.
WITHOUT_TFSPEED = """
import json, sys
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
tokens = json.loads(sys.argv[2])
state = model.signatures["initial_state"](batch=tf.constant(1))
state = model.signatures["prefill"](tokens=tf.constant([tokens]),
                                    lengths=tf.constant([len(tokens)]), **state)
found = []
for _ in range(8):
    found.append(int(tf.argmax(state.pop("logits")[0])))
    state = model.signatures["decode"](tokens=tf.constant(found[-1:]), **state)
print(json.dumps({"tokens": found, "state": sorted(state),
                  "tfspeed": [m for m in sys.modules if m.startswith("tfspeed")]}))
"""


@pytest.mark.parametrize(("form", "name"), [
    ("tflite", "decoder"), ("tflite", "learned"), ("litertlm", "sliding"),
    ("saved_model", "learned")])
def test_float32_decoders_give_the_references_tokens(form, name, tmp_path):
    model = with_tokenizer(MODELS[name]())
    path = export(model, form, tmp_path, context=64)
    with verify.opened(path, form) as runner:
        for prompt in (PROMPT, PROMPT * 7, [3]):  # also longer than one prefill, and none
            expected = reference(model, [prompt], 12)[0]
            np.testing.assert_array_equal(runner.greedy(prompt, 12), expected)
    found = manifest.read(path)["quality"]
    assert found["kl_divergence"] < 1e-6
    assert found["top1_agreement"] > 0.99
    assert verify.run(str(path)) == 0


def test_a_bundle_of_longrope_has_the_angles_of_its_context(tmp_path):
    rope = RopeConfig(factors=(1.0, 2.0), long_factors=(3.0, 4.0), original_context=48)
    model = with_tokenizer(tiny_decoder(rope=rope))
    path = export(model, "litertlm", tmp_path, context=48)  # its caches have more slots
    with verify.opened(path, "litertlm") as runner:
        for prompt in (PROMPT, PROMPT * 6):
            np.testing.assert_array_equal(runner.greedy(prompt, 12),
                                          reference(model, [prompt], 12)[0])
    assert not any("LongRoPE" in note for note in manifest.read(path)["notes"])
    path = export(model, "litertlm", tmp_path, context=64)
    assert any("more than 48 tokens" in note for note in manifest.read(path)["notes"])


@pytest.mark.parametrize("name", ["lstm", "gru", "uncached"])
def test_other_models_are_saved_models(name, tmp_path):
    model = MODELS[name]()
    path = export(model, "saved_model", tmp_path)
    with verify.opened(path, "saved_model") as runner:
        expected = reference(model, [PROMPT], 8)[0]
        np.testing.assert_array_equal(runner.greedy(PROMPT, 8), expected)
    record = manifest.read(path)
    assert "perplexity" not in record["quality"]  # on random tokens
    assert any("random tokens" in note for note in record["notes"])
    assert verify.run(str(path)) == 0
    for form in ("tflite",) * (name == "uncached") + ("litertlm",):
        with pytest.raises(TfspeedError, match="--format=saved_model"):
            export(model, form, tmp_path)


@pytest.mark.parametrize(("cell", "weights"), [("rnn", "float32"), ("lstm", "float32"),
                                               ("gru", "float32"), ("lstm", "int8")])
def test_recurrent_models_are_tflite_files(cell, weights, tmp_path):
    model = with_tokenizer(tiny_recurrent(cell))
    path = export(model, "tflite", tmp_path, weights, context=64)
    with verify.opened(path, "tflite") as runner:
        for prompt in (PROMPT, [3], PROMPT):  # nothing is left of the text before
            if weights == "float32":
                np.testing.assert_array_equal(runner.greedy(prompt, 12),
                                              reference(model, [prompt], 12)[0])
        scored = runner.score(np.asarray([PROMPT], np.int32))
        np.testing.assert_allclose(scored, model.score(np.asarray([PROMPT])),
                                   atol=1e-5 if weights == "float32" else 0.02)
    found = manifest.read(path)["quality"]
    assert found["kl_divergence"] < (1e-6 if weights == "float32" else 1e-3)
    assert verify.run(str(path)) == 0


def test_a_saved_model_needs_no_tfspeed(artifacts, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TFSPEED, str(artifacts["saved_model"]),
         json.dumps(PROMPT)], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    assert said["tfspeed"] == []
    assert {"kv_cache_k_0", "kv_cache_v_1", "state_index"} <= set(said["state"])
    expected = reference(tiny_decoder(), [PROMPT], 8)[0]
    np.testing.assert_array_equal(said["tokens"], expected)


def test_a_saved_model_takes_rows_of_several_lengths(artifacts):
    import tensorflow as tf
    call = tf.saved_model.load(str(artifacts["saved_model"])).signatures
    state = call["initial_state"](batch=tf.constant(2))
    tokens = tf.constant([[1, 2, 3, 4], [0, 0, 7, 3]])
    logits = call["prefill"](tokens=tokens, lengths=tf.constant([4, 2]), **state)["logits"]
    expected = reference(tiny_decoder(), [[1, 2, 3, 4], [7, 3]], 1)[:, 0]
    np.testing.assert_array_equal(tf.argmax(logits, -1), expected)


def test_a_saved_model_of_a_mirrored_model(tmp_path):
    strategy = strategies.create("mirrored")
    with strategy.scope():
        model = strategy.apply(with_tokenizer(tiny_decoder()))
    path = export(model, "saved_model", tmp_path, strategy="mirrored", report=strategy.report)
    assert path.name == "tiny-mirrored-float32"
    record = manifest.read(path)
    assert record["quality"]["kl_divergence"] < 1e-6
    assert verify.run(str(path)) == 0


@pytest.mark.parametrize("weights", ["float16", "int8", "int4", "int4,mlp/down=int8"])
def test_fewer_bits(weights, tmp_path):
    model = with_tokenizer(tiny_decoder(hidden_dim=32, mlp_dim=64))
    path = export(model, "tflite", tmp_path, weights)
    record = manifest.read(path)
    assert path.name == f"tiny-{files.file_name(weights)}.tflite"
    assert record["weights"] == weights
    assert record["quality"]["kl_divergence"] < {"float16": 1e-4, "int8": 0.05}.get(weights, 0.5)
    assert verify.run(str(path)) == 0


def test_the_manifest_says_where_an_artifact_came_from(artifacts):
    for form, path in artifacts.items():
        record = manifest.read(path)
        assert record["files"] == files.listing(path)
        assert (record["model"], record["format"], record["context"]) == ("tiny", form, 96)
        assert {"tensorflow", "ai-edge-litert", "litert-lm-builder", "commit"} <= set(
            record["environment"])
        assert record["quality"]["perplexity"] > 1
        assert record["quality"]["evaluated_tokens"] == 2 * 95
        assert len(record["probes"]) == 2
        assert all(len(probe["answer"].split()) == 16 for probe in record["probes"])
        assert record["command"].startswith("python ")


def test_capacities_grow_fourfold_up_to_the_context():
    config = tiny_decoder(context_length=8192).keras_model.config
    signatures = {s.name: s for s in tflite.plan(config, 5000)}
    assert [s.capacity for s in signatures.values() if s.length == 1] == [256, 1024, 4096, 5000]
    assert {"prefill_32_256", "prefill_128_5000"} <= set(signatures)
    assert signatures["score"].logits
    assert not signatures["prefill_32_256"].logits


@pytest.mark.parametrize("context", [2, 20, 33, 96, 1000])
def test_a_prefill_of_litert_lm_never_reaches_over_the_caches(context):
    config = tiny_decoder(context_length=1000).keras_model.config
    signatures = tflite.plan_for_litert_lm(config, context)
    lengths = sorted(s.length for s in signatures if s.name.startswith("prefill"))
    capacity = next(s.capacity for s in signatures if s.name == "decode")
    for prompt in range(1, context):
        at, left = 0, prompt
        while left:  # as the runtime does: the longest while it is filled, then the shortest
            length = next((n for n in lengths if n >= left), lengths[-1])
            assert at + length <= capacity
            at, left = at + min(length, left), left - min(length, left)


def test_what_a_bundle_says_of_its_model():
    model = with_tokenizer(tiny_decoder())
    said = litertlm.metadata(model, 64)
    assert said.max_num_tokens == 64
    assert [list(stop.token_ids.ids) for stop in said.stop_tokens] == [[1]]
    assert not said.HasField("start_token")
    model.tokenizer.add_bos, model.tokenizer.bos_id = True, 7
    assert list(litertlm.metadata(model, 64).start_token.token_ids.ids) == [7]
    model.tokenizer.chat_template = f"{WORDS[7]} {model.tokenizer.chat_template}"
    assert not litertlm.metadata(model, 64).HasField("start_token")


def test_a_bundles_template_takes_text_and_parts():
    model = with_tokenizer(tiny_decoder())
    model.tokenizer.chat_template = litertlm.metadata(model, 64).jinja_prompt_template
    parts = [{"type": "text", "text": "w1 "}, {"type": "text", "text": "w2"}]
    for content in ("w1 w2", parts):
        assert model.tokenizer.chat([{"role": "user", "content": content}]) == "w1 w2"


def test_a_bundle_needs_a_tokenizer(tmp_path):
    with pytest.raises(TfspeedError, match="--format=tflite"):
        export(tiny_decoder(), "litertlm", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_context_that_the_model_has_not(tmp_path):
    with pytest.raises(TfspeedError, match="context=97"):
        export(with_tokenizer(tiny_decoder()), "tflite", tmp_path, context=97)


def test_the_quality_that_is_recorded_is_that_of_the_engine(artifacts):
    """The same figures as `--engine=litert:int8` has in the bench: one definition."""
    from tfspeed.engines import create
    from tfspeed.measure.experiment import text_windows
    model = with_tokenizer(tiny_decoder())
    windows, _ = text_windows(model, TEXT)
    expected = quality.compare(model.score, create("litert:int8", model).score, windows)
    found = manifest.read(artifacts["tflite"])["quality"]
    assert found["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-6)
    assert found["kl_divergence"] == pytest.approx(expected["kl_divergence"], rel=1e-3)
