"""An encoder–decoder as a file: what it computes, its record, what is refused."""

import numpy as np
import pytest

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


def test_what_is_refused(tmp_path):
    for form in ("litertlm", "saved_model"):
        with pytest.raises(TfspeedError, match="tflite or keras"):
            job.export(tiny("whisper"), tiny("whisper"), form, "float32", None, tmp_path, TEXT,
                       Progress())
    assert not list(tmp_path.iterdir())
