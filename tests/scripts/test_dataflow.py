"""`--strategy=dataflow` as a user runs it: real processes, killed, frozen and misled."""

import importlib.util
import json
import signal

import pytest

from tests.scripts.test_multi_worker import (
    MEASURED,
    PROMPTS,
    end,
    expected,
    lines,
    start,
    told_of_the_loss,
    wait_for,
    worker,
)

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("glassllm"),
                                reason="glassllm is not installed: make test installs it")


def test_two_workers_measured_and_explained(tmp_path):
    code, out, err = end(start("--strategy=dataflow", "--workers=2", "--explain", *MEASURED,
                               cwd=tmp_path))
    assert code == 0, err
    assert err == ""
    baseline, row = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert row["devices"] == ["worker 0", "worker 1"]
    assert row["same_tokens"] is True
    assert row["perplexity_delta"] == pytest.approx(0, abs=1e-4)
    assert row["weights_bytes"] < baseline["weights_bytes"]
    assert row["parameters"] == baseline["parameters"]
    assert "chief of the workers alone" in " ".join(baseline["notes"])
    assert out.count("A call of each stage") == 2  # expected before, measured beside it after
    assert "worker 1: block" in out
    assert (tmp_path / "dataflow.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "logs" / "dataflow").glob("events.out.tfevents.*"))


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_every_prompt_has_one_answer_whoever_is_killed(tmp_path, index):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    process = start("--prompts=prompts.txt", "--new_tokens=40", "--batch=2", "--strategy=dataflow",
                    "--restarts=1", cwd=tmp_path)
    journal = tmp_path / "answers.jsonl.journal"
    wait_for(lambda: lines(journal) >= 4)
    worker(process, index).kill()
    code, _, err = end(process)
    assert code == 0, err
    assert "killed by SIGKILL" in err
    answers = [json.loads(x) for x in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert answers == expected()


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_killed_or_frozen_while_measuring_is_one_message(tmp_path, sent):
    process = start("--strategy=dataflow", *MEASURED, "--repetitions=100000", cwd=tmp_path)
    told_of_the_loss(process, sent, 120)


@pytest.mark.slow
def test_quantized_layers_over_three_workers(tmp_path):
    code, _, err = end(start("--strategy=quantize+dataflow", "--workers=3", *MEASURED,
                             cwd=tmp_path))
    assert code == 0, err
    row = json.loads((tmp_path / "results.json").read_text())["rows"][1]
    assert row["devices"] == ["worker 0", "worker 1", "worker 2"]
    assert row["dtype"] == "int8"


def test_mistakes_are_told_with_exit_code_2(tmp_path):
    cases = [
        (start("--strategy=dataflow+tensor_parallel", cwd=tmp_path), "takes all workers"),
        (start("--explain", cwd=tmp_path), "--explain shows the stages"),
        (start("--strategy=dataflow", "--workers=1", "--explain", *MEASURED, cwd=tmp_path),
         "one worker has none"),
    ]
    for process, words in cases:
        code, out, err = end(process)
        assert code == 2, (words, out, err)
        assert words in err, err
        assert err.startswith("error: ")
        assert len(err.strip().splitlines()) == 1, err


@pytest.mark.slow
def test_more_workers_than_layers(tmp_path):
    code, _, err = end(start("--strategy=dataflow", "--workers=5", cwd=tmp_path))
    assert code == 2, err
    # On a busy machine another worker may tell what the chief tells.
    assert all("as many stages as the model has layers" in line
               for line in err.strip().splitlines()), err


@pytest.mark.slow
def test_one_worker_is_no_pipeline_and_works(tmp_path):
    code, _, err = end(start("--strategy=dataflow", "--workers=1", *MEASURED, cwd=tmp_path))
    assert code == 0, err
    row = json.loads((tmp_path / "results.json").read_text())["rows"][1]
    assert row["same_tokens"] is True
    assert any("no pipeline" in note for note in row["notes"])
