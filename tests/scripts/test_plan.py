"""scripts/calibrate.py, scripts/plan.py and --strategy=auto as a user runs them."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.costs.calibrations import made_up
from tests.scripts import forked
from tfspeed.costs import auto, calibration, planner, shapes
from tfspeed.costs.prediction import Load, Predictor
from tfspeed.costs.qualities import qualities
from tfspeed.errors import TfspeedError

ROOT = Path(__file__).parents[2]
needs_glassllm = pytest.mark.skipif(not importlib.util.find_spec("glassllm"),
                                    reason="glassllm is not installed: make test installs it")


@pytest.fixture
def calibrated(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calibration.save(made_up())
    return tmp_path


@needs_glassllm
def test_plans(calibrated):
    cases = {
        "--model=glassllm --workers=2 --max_perplexity_increase=0.01": (0, "Points: plan.json"),
        "--explain": (0, "10^6 / 10 = 10^5"),
        "--model=glassllm --tpot_ms=0.000001": (2, "times the bound"),
        "--model=glassllm --tpot_ms=-1": (2, "--tpot_ms must be above 0"),
        "--model=glassllm --batch=-2": (2, "--batch must be 0"),
        "--model=glassllm --new_tokens=0": (2, "--new_tokens must be at least 1"),
        "--model=glassllm --workers=999": (2, "at most the cores"),
        "--model=glassllm --prompt_tokens=99999": (2, "fit in the context"),
        "--model=glassllm --results=none.json": (2, "cannot be read"),
        "--output=none/x.json": (2, "must be a file in a writable folder"),
        "--quantize_bits=4": (2, "Unknown command line flag"),  # it applies no strategy
    }
    made = forked.calls("plan.py", [flags.split() for flags in cases], calibrated)
    for (flags, (code, said)), (found, out, err) in zip(cases.items(), made, strict=True):
        assert found == code, (flags, out, err)
        assert said in (out if code == 0 else err), flags
        assert "Traceback" not in err
    rows = json.loads((calibrated / "plan.json").read_text())
    assert all(row["perplexity_increase"] <= 0.01 for row in rows)
    assert all(row["command"].startswith("python scripts/run.py") for row in rows)
    assert (calibrated / "plan.png").read_bytes().startswith(b"\x89PNG")


@needs_glassllm
@pytest.mark.slow
def test_what_a_plan_prints_runs_and_is_predicted(calibrated):
    one_each = {quality.strategy: quality for quality in qualities()}.values()
    flags = ("--model=glassllm --workers=2 --batch=2 --prompt_tokens=24 --new_tokens=8 "
             "--results=seen.json")
    commands = {}
    for quality in one_each:  # as if it had been measured, and better than all: on the front
        (calibrated / "seen.json").write_text(json.dumps({"rows": [
            {"model": "glassllm", "strategy": quality.made().label, "engine": quality.engine,
             "perplexity_delta": -0.01}]}))
        assert forked.calls("plan.py", [flags.split()], calibrated)[0][0] == 0
        rows = json.loads((calibrated / "plan.json").read_text())
        commands |= {(row["strategy"], row["engine"], row["workers"]): row["command"]
                     for row in rows}
    assert {strategy for strategy, *_ in commands} == {q.strategy for q in one_each}
    assert len({strategy for strategy, *_ in commands}) > 2
    for (strategy, engine, _), command in commands.items():
        words = shlex.split(command.replace("python ", f"{sys.executable} {ROOT}/", 1))
        done = subprocess.run([*words, "--repetitions=1", "--eval_tokens=256",
                               "--task_questions=0"], cwd=calibrated, text=True,
                              capture_output=True, timeout=300, env=dict(os.environ))
        assert done.returncode in (0, 3), (command, done.stderr[-500:])
        row = json.loads((calibrated / "results.json").read_text())["rows"][-1]
        assert (row["strategy"].partition("(")[0], row["engine"]) == (strategy, engine)
        assert "e2e_s" in row["prediction_error"], command


def test_mistakes_of_calibrate(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))
    cases = {"--threads=0": "numbers from 1", "--threads=many": "numbers from 1",
             "--engines=warp": "--engines must be among", "--engines=": "--engines must be among",
             "--check": "has not been calibrated", "--check --check_choice": "one at a time",
             "--check --output=none/x.json": "writable folder"}
    made = forked.calls("calibrate.py", [flags.split() for flags in cases], tmp_path)
    for (flags, said), (code, _, err) in zip(cases.items(), made, strict=True):
        assert code == 2, flags
        assert said in err, flags
        assert "Traceback" not in err


def test_a_cache_folder_that_cannot_be_written_is_told_first(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(TfspeedError, match=r"cannot be written.*XDG_CACHE_HOME"):
        calibration.check_writable()


def test_auto_keeps_well_within_the_gates():
    shape, predictor = shapes.decoder(_config()), Predictor(made_up())
    found, *rivals = auto.contenders(shape, predictor, "m", 2, Load(1, 64, 16))
    assert all(found.e2e_s <= rival.e2e_s <= (1 + planner.DOUBT) * found.e2e_s
               and rival.quality.strategy == "baseline" for rival in rivals)
    assert (found.quality.strategy, found.quality.engine) == ("baseline", "fused:int8")
    loose = auto.contenders(shape, predictor, "m", 2, Load(1, 64, 16), limit=0.5)[0]
    assert loose.tpot_s < found.tpot_s
    assert loose.quality.increase <= 0.25
    exact = [q for q in qualities() if q.increase == 0]
    assert found.e2e_s < min(p.e2e_s for p in planner.search(
        shape, predictor, exact, [Load(1, 64, 16)], [2], 1, 2))


def _config():
    from tfspeed.costs.cases import MODELS
    return MODELS["llama-60m"]


def verdict(seconds, **found):
    rows = [{"strategy": "baseline", "engine": "xla", "e2e_s": {"median": 1.0}},
            {"strategy": "baseline", "engine": "fused:int8", "e2e_s": {"median": seconds}, **found}]
    return auto.verdict(rows)


def test_a_choice_is_never_worse_than_the_baseline():
    assert "2.00 times as fast" in verdict(0.5)
    assert "keep the baseline" in verdict(1.25)
    assert "keep the baseline" in verdict(0.5, gate={"limit": 0.01, "passed": False})
    assert "baseline itself" in auto.verdict([{}])


def test_of_several_choices_the_fastest_that_keeps_its_gate_counts():
    rows = [{"strategy": "baseline", "engine": engine, "e2e_s": {"median": seconds},
             "gate": {"passed": passed}} for engine, seconds, passed in (
        ("xla", 1.0, True), ("litert:int8", 0.5, True), ("fused:int4", 0.2, False),
        ("fused:int8", 0.6, True))]
    assert "use baseline under litert:int8, 2.00 times" in auto.verdict(rows)
    assert "keep the baseline" in auto.verdict([rows[0], rows[2]])


@needs_glassllm
@pytest.mark.slow
def test_auto_measures_its_choice(calibrated):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "run.py"), "--strategy=auto", "--model=glassllm",
         "--repetitions=2", "--eval_tokens=256", "--task_questions=0"], cwd=calibrated, text=True,
        capture_output=True, timeout=300, env=dict(os.environ))
    assert done.returncode in (0, 3), done.stderr
    assert "auto: " in done.stdout
    rows = json.loads((calibrated / "results.json").read_text())["rows"]
    assert rows[0]["engine"] == "xla"
    assert rows[-1]["engine"].startswith("fused")
    assert len({row["engine"] for row in rows}) == len(rows) <= 4
    said = " ".join((done.stdout + done.stderr).split())  # lines are wrapped
    assert "now measured" in said
    assert said.count("may be as fast") == len(rows) - 2
    assert all("tpot_s" in row["prediction_error"] for row in rows)


@pytest.mark.slow
def test_a_real_calibration(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "calibrate.py"), "--threads=1",
                           "--engines=fused"], cwd=tmp_path, text=True, capture_output=True,
                          timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "tfspeed" / "calibration.json").read_text())
    assert made["fits"]["1"]["fused"]["median_error"] < 0.5
