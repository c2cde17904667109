"""Models of equal size, a trainer that learns alike by graph and XLA, sentences out of numbers."""

import json

import numpy as np
import pytest

from tests.scripts import forked
from tfspeed.errors import TfspeedError
from tfspeed.evolution import findings, models, report, training
from tfspeed.measure import pictures

TEXT = b"the quick brown fox jumps over the lazy dog. " * 20


@pytest.mark.parametrize("kind", models.KINDS)
def test_sizes_are_equal_and_training_learns(kind):
    model = models.build(kind, 30_000, 1, 64)
    assert abs(model.parameters / 30_000 - 1) < models.TOLERANCE
    if kind != "transformer":  # the formula that the width comes from counts what is built
        assert model.parameters == models.recurrent_parameters(kind, models.width(model), 1)
    trainer = training.Trainer(model, False, 1e-2, 8, 16)
    told = training.learn(trainer, training.windows(TEXT, 8, 16), 0, 60 * 128)
    assert told["trained_tokens"] == 60 * 128
    assert len(told["losses"]) == 60
    assert np.mean(told["losses"][-5:]) < 0.6 * told["losses"][0]


@pytest.mark.parametrize("parameters", [200_000, 1_000_000, 30_000_000])
def test_the_formulas_meet_the_count(parameters):
    for kind in ("rnn", "lstm", "gru"):
        found = models.recurrent_parameters(kind, models.hidden_dim(kind, parameters, 3), 3)
        assert abs(found / parameters - 1) < models.TOLERANCE
    found = models.decoder_config(parameters, 3, 64).parameter_count
    assert abs(found / parameters - 1) < models.TOLERANCE


def test_a_size_that_nobody_has_is_refused():
    with pytest.raises(TfspeedError, match="nearest="):
        models.build("transformer", 3_000, 4, 64)


def test_xla_and_graph_learn_the_same():
    losses = []
    for compiled in (False, True):
        trainer = training.Trainer(models.build("gru", 20_000, 1, 64), compiled, 1e-3, 4, 8)
        batch = next(training.windows(TEXT, 4, 8))
        trainer.warm_up(batch)
        losses.append([trainer.step(batch, 0.5)[0] for _ in range(3)])
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[0][2] < losses[0][0]


def test_a_budget_of_seconds_ends():
    trainer = training.Trainer(models.build("rnn", 20_000, 1, 64), False, 1e-3, 2, 8)
    told = training.learn(trainer, training.windows(TEXT, 2, 8), 0.05, 0)
    assert told["trained_s"] >= 0.05
    assert told["trained_tokens"] == 16 * len(told["losses"])


def test_a_rate_that_is_too_high_is_told():
    trainer = training.Trainer(models.build("rnn", 20_000, 1, 64), False, 1e38, 2, 8)
    with pytest.raises(TfspeedError, match="learning_rate"):
        training.learn(trainer, training.windows(TEXT, 2, 8), 0, 50 * 16)


def row(name, speeds, perplexity=9.0):
    summary = {"median": 1.0, "cv": 0.01, "samples": [1.0]}
    return {"model": name, "parameters": 10, "hidden_dim": 2, "train_engine": "graph",
            "perplexity": perplexity, "bits_per_byte": 3.0, "trained_tokens": 100,
            "trained_s": 2.0, "losses": [3.0, 2.0],
            "training": [{"length": n, "step_s": summary, "tokens_per_s": s}
                         for n, s in zip((32, 512), speeds, strict=True)],
            "decode": [{"context": n, "state_bytes": 1000 * s, "tpot_s": summary,
                        "ttft_s": summary, "decode_tokens_per_s": s, "prefill_tokens_per_s": s}
                       for n, s in zip((64, 4096), speeds, strict=True)]}


def test_sentences_follow_the_numbers():
    told = findings.findings([row("gru", (100.0, 20.0)), row("transformer", (50.0, 51.0), 4.0)])
    assert told[0] == (
        "Training, tokens/s, from length 32 to 512: gru 100 → 20 (0.20x), transformer 50 → 51 "
        "(the same). First (within 5 %, or what runs differ by): gru at length 32, transformer at "
        "length 512.")
    assert "gru 100.0 kB → 20.0 kB" in told[2]
    assert told[4].index("transformer") < told[4].index("gru")
    other = findings.findings([row("gru", (100.0, 100.0)), row("transformer", (99.0, 10.0))])
    assert "differ by): gru and transformer at context 64, gru at context 4096." in other[1]
    noisy = row("transformer", (99.0, 80.0))
    for entry, samples in ((noisy, [1.0, 2.0]), (fast := row("gru", (100.0, 100.0)), [0.9, 1.5])):
        entry["decode"][1]["tpot_s"] = {"samples": samples}
    assert "gru and transformer at context 64 to 4096." in findings.findings([fast, noisy])[1]


def test_what_was_cut_off_is_still_shown():
    """After Ctrl-C rows have some parts only."""
    rows = [{"model": "gru", "parameters": 10, "hidden_dim": 2},
            {"model": "rnn", "parameters": 10, "hidden_dim": 2}]
    assert findings.findings(rows) == []
    assert len(report.tables(rows)) == 1
    assert pictures.rendered(report.painter(rows), report.SIZE).startswith(b"\x89PNG")


def test_the_script(tmp_path):
    """A whole run, and the mistakes of its flags."""
    small = ["--parameters=20000", "--layers=1", "--step_tokens=32", "--lengths=8,12",
             "--contexts=8,40", "--length=8", "--repetitions=2", "--eval_tokens=64",
             "--learning_rate=0.01", "--models=rnn,transformer"]
    cases = {"--models=cnn": "cnn", "--lengths=1": "two tokens", "--contexts=a": "contexts",
             "--engine=fused": "fused", "--seconds=0 --tokens=0": "tokens=0", "--text=no": "text",
             "--parameters=100": "parameters=100", "--seconds=-1": "seconds",
             "--learning_rate=nan": "learning_rate", "--repetitions=0": "repetitions",
             "--output=no/x.json": "--output"}
    done = forked.calls("evolution.py", [[*small, "--seconds=0", "--tokens=640"],
                                         *(flags.split() for flags in cases)], tmp_path)
    code, out, err = done[0]
    assert (code, err) == (0, ""), err
    assert "Perplexity a byte on unseen text" in out
    rows = json.loads((tmp_path / "results_evolution.json").read_text())["rows"]
    assert [r["model"] for r in rows] == ["rnn", "transformer"]
    for r in rows:
        assert abs(r["parameters"] / 20_000 - 1) < 0.02
        assert r["trained_tokens"] == 640
        assert 1 < r["perplexity"] < 300
        assert [e["length"] for e in r["training"]] == [8, 12]
        assert [e["context"] for e in r["decode"]] == [8, 40]
    assert len({e["state_bytes"] for e in rows[0]["decode"]}) == 1  # whatever the context
    assert rows[1]["decode"][1]["state_bytes"] == 5 * rows[1]["decode"][0]["state_bytes"]
    assert (tmp_path / "evolution.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "logs" / "evolution").rglob("events*"))
    for (flags, words), (code, out, err) in zip(cases.items(), done[1:], strict=True):
        assert code == 2, (flags, out, err)
        assert words in err, (flags, err)
        assert "Traceback" not in err, (flags, err)
