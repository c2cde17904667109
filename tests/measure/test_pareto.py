"""The Pareto picture: which rows are on the front, and what is written."""

import json

import pytest

from tests.scripts import forked
from tfspeed.errors import TfspeedError
from tfspeed.measure import pareto


def results(path, *rows):
    made = [{"strategy": name, "engine": "litert", "dtype": "float32", "perplexity_delta": loss,
             "gate": {"limit": 0.1, "passed": loss < 0.1},
             "speedup": {"tpot": {"ratio": speed, "low": speed - 0.1, "high": speed + 0.1}}}
            for name, speed, loss in rows]
    made.insert(0, {"strategy": "baseline", "engine": "litert", "dtype": "float32"})
    path.write_text(json.dumps({"environment": {}, "rows": made}))
    return str(path)


def test_front(tmp_path):
    paths = [results(tmp_path / "a.json", ("slow", 1.1, 0.05), ("good", 2.0, 0.01)),
             results(tmp_path / "b.json", ("fast", 3.0, 0.8), ("worse", 1.9, 0.02))]
    found = pareto.points(paths)
    assert [p.label for p in found] == [f"{n}, litert" for n in ("good", "worse", "slow", "fast")]
    assert [p.label for p in pareto.front(found)] == ["good, litert", "fast, litert"]
    assert not found[-1].passed


def test_a_later_file_replaces_a_row(tmp_path):
    found = pareto.points([results(tmp_path / "a.json", ("x", 1.1, 0.05)),
                           results(tmp_path / "b.json", ("x", 1.3, 0.04))])
    assert [(p.speedup, p.loss) for p in found] == [(1.3, 0.04)]


def test_script_writes_png_and_tensorboard(tmp_path):
    path = results(tmp_path / "a.json", ("x", 1.1, 0.05), ("y", 2.0, 0.7))
    code, out, err = forked.run("pareto.py", f"--results={path}", f"--output={tmp_path}/p.png",
                                f"--logdir={tmp_path}/logs", cwd=tmp_path)
    assert code == 0, err
    assert "2.00x" in out
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    assert list((tmp_path / "logs/pareto").glob("events.*"))


def test_bad_files(tmp_path):
    with pytest.raises(TfspeedError, match="No row"):
        pareto.points([results(tmp_path / "a.json")])
    with pytest.raises(TfspeedError, match="cannot be read"):
        pareto.points([str(tmp_path / "none.json")])
