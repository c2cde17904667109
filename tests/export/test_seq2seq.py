"""An encoder–decoder as a file: what it computes, its record, what is refused."""

import numpy as np
import pytest
import tensorflow as tf

from tests.models.seq2seq import save_ctranslate2, save_hf, sources, tiny
from tfspeed.engines import create
from tfspeed.errors import TfspeedError
from tfspeed.export import job, manifest, runners, tflite, verify
from tfspeed.measure.progress import Progress
from tfspeed.models.load import load

TEXT = "w1 w2 w3 w4 w5 w6 w7 w8 " * 40


@pytest.mark.parametrize("shape", ["whisper", *(pytest.param(name, marks=pytest.mark.slow)
                                               for name in ("bart", "t5", "t5_gated"))])
def test_a_file_computes_what_the_model_does(tmp_path, shape):
    model = tiny(shape)
    if shape == "whisper":
        save_ctranslate2(model, tmp_path / "m")
    else:
        model = tiny(shape, context_length=20)
        save_hf(model, tmp_path / "m")
    loaded = load(tmp_path / "m")
    path = job.export(loaded, loaded, "tflite", "float32", None, tmp_path, TEXT, Progress())
    record = manifest.read(path)
    assert record["quality"]["top1_agreement"] == 1
    assert abs(record["quality"]["perplexity_delta"]) < 1e-4
    assert any("empty source" in note for note in record["notes"])
    assert verify.run(str(path)) == 0

    graph, source = create("graph", loaded), sources(loaded, 1)
    runner = runners.of_tflite(path)
    runner.hear(source[0])
    tokens = np.asarray([[1, 2, 3, 4, 5]], np.int32)
    np.testing.assert_allclose(runner.score(tokens), graph.score(tokens, graph.encode(source)),
                               atol=1e-3)
    runner.close()
    if shape == "whisper":
        assert tflite.description(path)["prompts"]["de"] == [56, 58, 60, 62]


def test_what_strategies_made_is_in_the_file(tmp_path):
    import strategies

    model = tiny("whisper")
    changed = strategies.create("quantize").apply(model)
    plain, path = (job.export(one, model, "tflite", "float32", None, tmp_path, TEXT, Progress(),
                              name) for one, name in ((model, "baseline"), (changed, "quantize")))
    saved = model.weights_bytes - changed.weights_bytes
    assert plain.stat().st_size - path.stat().st_size > 0.4 * saved > 10_000
    assert "perplexity" not in manifest.read(path)["quality"]  # no tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["whisper", "bart", "t5"])
def test_a_saved_model_after_a_source(tmp_path, shape):
    model = tiny(shape, **{} if shape != "whisper" else {"suppressed": (3, 5)})
    path = job.export(model, model, "saved_model", "float32", None, tmp_path, TEXT, Progress())
    assert manifest.read(path)["quality"]["top1_agreement"] == 1
    assert verify.run(str(path)) == 0
    runner, engine = runners.SavedModelRunner(path), create("graph", model)
    tokens = np.asarray([[1, 2, 3, 4, 5]], np.int32)
    for source in sources(model, 2):
        encoded = engine.encode([source] if shape != "whisper" else source[None])
        runner.hear(source)
        np.testing.assert_allclose(runner.score(tokens), engine.score(tokens, encoded), atol=1e-4)
        made = [int(row[0]) for row in engine.generate([[1, 2, 3]], 8, encoded=encoded)]
        assert runner.greedy([1, 2, 3], 8) == made
    call = tf.saved_model.load(str(path)).signatures  # two sources, prompts of two lengths
    name, _ = next(iter(call["encode"].structured_input_signature[1].items()))
    both = model.checked_source(sources(model, 2))
    state = call["initial_state"](batch=tf.constant(2))
    logits = call["prefill"](tokens=tf.constant([[0, 7], [4, 5]]), lengths=tf.constant([1, 2]),
                             **state, **call["encode"](**{name: tf.constant(both)}))["logits"]
    first = np.stack(list(engine.generate([[7], [4, 5]], 1, encoded=engine.encode(both))), 1)
    np.testing.assert_array_equal(np.argmax(logits, -1), first[:, 0])


def test_what_is_refused(tmp_path):
    with pytest.raises(TfspeedError, match="no keys and values of an encoder"):
        job.export(tiny("whisper"), tiny("whisper"), "litertlm", "float32", None, tmp_path, TEXT,
                   Progress())
    assert not list(tmp_path.iterdir())
