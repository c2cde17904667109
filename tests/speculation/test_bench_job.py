"""Drafts timed beside plain generation, on the tiny real model."""

import importlib.util
import json

import pytest

from tests.scripts import forked

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("glassllm"),
                                reason="glassllm is not installed: make test installs it")


def test_rows_say_how_fast_and_whether_the_tokens_are_the_same(tmp_path):
    prompts = {"copies": ["one two three one two three one two three"], "others": ["Once"]}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    (tmp_path / "none.json").write_text("{}")
    small = ["--strategy=speculative", "--model=glassllm", "--new_tokens=12", "--repetitions=2"]
    made = forked.calls("bench_drafts.py", [
        [*small, "--engine=fused", "--prompts=prompts.json", "--output=rows.json"],
        [*small, "--prompts=none.json"], [*small[1:], "--strategy=baseline"],
        [*small, "--repetitions=0"]], tmp_path)
    (code, out, err), *mistakes = made
    assert code == 0, err
    assert "copies:" in out
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["group"] for row in rows] == ["copies", "others"]
    for row in rows:
        assert row["same_tokens"] is True
        assert row["speedup"]["ratio"] == pytest.approx(
            row["plain_tpot_s"]["median"] / row["tpot_s"]["median"])
    for (code, _, err), words in zip(mistakes, ("{group: [prompt", "must make drafts",
                                                "repetitions=0"), strict=True):
        assert code == 2
        assert words in err
        assert "Traceback" not in err
