import errno
import io
import json
import math
import types

import pytest
import rich.console
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from tfspeed import main_job
from tfspeed.errors import TfspeedError
from tfspeed.measure import report, tensorboard
from tfspeed.measure.metrics import Timing, latency, roofline


def row(strategy="baseline", **extra):
    timings = [Timing(0.0, [0.2, 0.23, 0.26]), Timing(1.0, [1.2, 1.231, 1.262])]
    return {
        "model": "tiny/model", "parameters": 10, "weights_bytes": 40_000_000,
        "strategy": strategy, "engine": "xla", "devices": ["CPU:0"], "threads": 2,
        "dtype": "float32", "batch": 1, "prompt_tokens": 16, "new_tokens": 3, "repetitions": 2,
        "load_s": 1.5, "compile_s": 2.5, **latency(timings, 1, 16),
        **roofline(40_000_000, 0.03, 1, 10.0), "peak_rss_bytes": 123_000_000,
        "step_bytes": 40_000_000, "perplexity": 12.5, "perplexity_delta": 0.031,
        "perplexity_delta_interval": {"low": -0.004, "high": 0.0671},
        "kl_divergence": 0.02, "top1_agreement": 0.97, "evaluated_tokens": 4080,
        "task_accuracy": 0.4, "task_accuracy_interval": {"low": 0.2188, "high": 0.6134},
        "task_agreement": 0.95, "task_questions": 20, "notes": ["a note"], **extra}


ROWS = [row(), row("mirrored", same_tokens=False, dtype="bfloat16",
                   gate={"limit": 0.03, "passed": False},
                   speedup={"tpot": {"ratio": 1.5, "low": 1.4, "high": 1.6}})]


def shown(rows, width):
    console = rich.console.Console(file=io.StringIO(), width=width)
    for part in report.tables(rows):
        console.print(part)
    return console.file.getvalue()


def test_the_table_is_legible_in_80_columns():
    text = shown(ROWS, 80)
    for cell in ("mirrored bfloat16", "1.50x (1.40–1.60)", "12.50 (+3.10 %)", "97.0 %", "no",
                 "200.0 ±0%", "40 MB at 10.0 GB/s", "-0.40 to +6.71 %", "FAILED (+3 %)",
                 "40 % (22–61)", "on 4080 tokens and 20 questions"):
        assert cell in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_limit_of_each_row_is_named():
    fast = row("fast", step_bytes=10_000_000, read_bandwidth_gb_per_s=20.0, roofline_fraction=1.2)
    text = " ".join(shown([row(), fast], 80).split())
    assert "10 MB at 20.0 GB/s with 2 threads, 40 MB at 10.0 GB/s with 2 threads" in text
    assert "over 100 % of the limit" in text
    assert "over 100 %" not in shown([row()], 80)


def test_a_note_of_all_rows_is_said_once():
    rows = [row(), row("mirrored", notes=["a note", "its own [a-z]"])]
    text = shown(rows, 80)
    assert text.count("a note") == 1
    assert "baseline: a note" not in text
    assert "mirrored: its own [a-z]" in text  # rich would take [a-z] for markup
    assert "baseline: a note" in shown(rows[:1], 80)


def test_microseconds_are_not_zero():
    small = row(engine="litert:int8,block_[a-z]=int4")
    small["tpot_s"] = {"median": 12.3e-6, "cv": 0.0, "samples": [12.3e-6, 12.3e-6]}
    text = shown([small], 80)
    assert "0.012 ±0%" in text
    assert "block_[a-z]=int4" in text


def test_predictions_are_shown_with_their_error():
    guessed = row(predicted={"ttft_s": 0.19, "tpot_s": 0.0305},
                  prediction_error={"ttft_s": -0.05, "tpot_s": 0.01})
    text = shown([guessed], 80)
    assert "190.0 (-5 %)" in text
    assert "30.5 (+1 %)" in text
    assert "predicted" not in shown([row()], 80)


def test_energy_is_never_a_bare_number():
    guess = row(energy_j_per_token=0.5, energy_source="estimate",
                energy_j_per_token_interval={"low": 0.25, "high": 1.0})
    counted = row(energy_j_per_token=0.5, energy_source="rapl")
    assert "estimate 0.25–1" in shown([guess], 80)
    assert "0.5 (rapl)" in shown([counted], 80)


def test_missing_values_show_a_dash():
    bare = row()
    for key in ("perplexity", "tpot_s", "kl_divergence", "peak_rss_bytes"):
        del bare[key]
    assert shown([bare], 80).count("–") >= 4
    assert report.tables([]) == []


def test_markdown_holds_the_same_cells():
    text = report.markdown(ROWS)
    assert "| mirrored bfloat16 | xla |" in text
    assert "1.50x (1.40–1.60)" in text
    assert "| **FAILED** (+3 %) |" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines[:4]} == {lines[0].count("|")}


def test_json_round_trip(tmp_path):
    path = tmp_path / "results.json"
    report.write_json(path, {"cpu": "x"}, [row(perplexity=math.nan)])
    written = report.read_json(path)
    assert written["environment"] == {"cpu": "x"}
    assert written["rows"][0]["perplexity"] is None
    assert written["rows"][0]["tpot_s"]["samples"] == pytest.approx([0.03, 0.031])
    assert json.loads(path.read_text()) == written
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_json_that_cannot_be_written_or_read(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(TfspeedError, match="cannot be written"):
        report.write_json(tmp_path / "file" / "x.json", {}, [])
    with pytest.raises(TfspeedError, match="cannot be read"):
        report.read_json(tmp_path / "file")


def test_what_was_measured_is_shown_where_it_cannot_be_written(tmp_path, monkeypatch, capsys):
    def full(self, *args, **kwargs):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    flags = types.SimpleNamespace(output=str(tmp_path / "rows.json"), logdir=str(tmp_path / "logs"))
    with pytest.raises(TfspeedError, match="No space left"):
        main_job.write_report([row()], flags)
    assert "12.50 (+3.10 %)" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_tensorboard_shows_the_run(tmp_path):
    tensorboard.check_logdir(tmp_path / "logs")
    folder = tensorboard.write_run(tmp_path / "logs", ROWS[1])
    tensorboard.write_run(tmp_path / "logs", ROWS[1])  # again: replaces, does not double
    assert folder == tmp_path / "logs" / "tiny_model" / "mirrored_bfloat16" / "xla-t2-b1-p16-n3"
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    tags = set(events.Tags()["tensors"])
    assert {"latency/ttft_s", "latency/tpot_s", "latency/itl_s", "quality/perplexity",
            "throughput/decode_tokens_per_s", "limit/roofline_fraction", "table",
            } <= tags
    for tag, expected in (("quality/perplexity_delta_high", 0.0671), ("quality/gate_passed", 0.0),
                          ("quality/max_perplexity_increase", 0.03),
                          ("quality/task_accuracy", 0.4), ("quality/task_accuracy_low", 0.2188)):
        value, = events.Tensors(tag)
        assert tf.make_ndarray(value.tensor_proto) == pytest.approx(expected)
    value, = events.Tensors("quality/perplexity")
    assert tf.make_ndarray(value.tensor_proto) == 12.5
    histogram, = events.Tensors("latency/itl_s")
    assert tf.make_ndarray(histogram.tensor_proto)[:, 2].sum() == 4  # left, right, count
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    data = plugin_data_pb2.HParamsPluginData.FromString(content)
    assert data.session_start_info.hparams["strategy"].string_value == "mirrored"


def test_a_logdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(TfspeedError, match="logdir"):
        tensorboard.check_logdir(tmp_path / "file" / "logs")
