"""What the checks measured is kept, also where Ctrl-C comes between."""

import json

import pytest

from tests.costs.calibrations import made_up
from tfspeed.costs import cases, checking, shapes
from tfspeed.costs.prediction import Predictor
from tfspeed.measure.placement import Placement

SHAPE = shapes.decoder(cases.MODELS["mini-15m"])


@pytest.fixture
def observer(monkeypatch):
    """Stands in place of the process that times; a test sets after how many cases it ends."""
    class Fake:
        left = 10**6

        def __init__(self, threads):
            self.threads = threads

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def in_turns(self, cases, rounds, home):
            assert len({case.model for case in cases}) == 1  # so many lie in memory at once
            for case in cases * rounds:
                Fake.left -= rounds != checking._GLANCES
                if Fake.left < 0:
                    raise KeyboardInterrupt
                yield case, {"ttft_s": [0.2, 0.1, 0.3], "tpot_s": [0.01 * case.batch],
                             "memory": [2e10, 4e10], "placement": []}

    monkeypatch.setattr(checking, "Observer", Fake)
    monkeypatch.setattr(checking, "_shape", lambda model: SHAPE)
    monkeypatch.setattr(Predictor, "now", lambda self: self)
    return Fake


def test_a_check_that_is_interrupted_keeps_its_rows(observer, tmp_path, capsys):
    observer.left = 3
    written, picture = tmp_path / "check.json", tmp_path / "check.png"
    with pytest.raises(KeyboardInterrupt):
        checking.run(made_up(), [1, 2], ["fused"], str(written), str(picture))
    found = json.loads(written.read_text())
    assert len(found["rows"]) == 3
    assert found["environment"]["cores"]  # for the gallery, which takes it over
    row = found["rows"][0]
    assert row["ttft_s"] == 0.2
    assert row["prediction_error"]["ttft_s"] == pytest.approx(row["predicted"]["ttft_s"] / 0.2 - 1)
    errors = [abs(r["prediction_error"][name]) for r in found["rows"] for name in ("ttft_s",
                                                                                   "tpot_s")]
    (every, count, median, high), before, anywhere = found["summary"][-3:]
    assert (every, count, before[0]) == ("all", 6, "all, memory as calibrated")
    assert anywhere == ["all, wherever its cores lay", 6, median, high]  # nobody could tell
    assert min(errors) <= median <= high <= max(errors)
    assert row["calibrated"]["tpot_s"] > row["predicted"]["tpot_s"]  # memory is faster now
    assert "3 configurations" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_of_several_moments_the_median_counts(observer, tmp_path, capsys):
    written = tmp_path / "check.json"
    checking.run(made_up(), [1], ["xla"], str(written), str(tmp_path / "check.png"), 3)
    found = json.loads(written.read_text())["rows"]
    assert len(found) == 6
    assert {row["ttft_s"] for row in found} == {0.2}
    assert {len(row["rounds"]["ttft_s"]) for row in found} == {3 * checking._ROUNDS}
    assert "6 configurations" in capsys.readouterr().out
    home, away = ({"turn_s": turn_s, "multiplied": 7e9} for turn_s in (3e-8, 1.5e-7))
    seen = [{"ttft_s": [s], "tpot_s": [s], "memory": [1e10], "placement": [where]}
            for s, where in ((0.3, home), (0.1, home), (0.2, home), (0.9, away), (0.8, away))]
    case = next(case for case in cases.held_out(1) if case.engine == "xla")
    row = checking._row(Predictor(made_up()), case, seen, Placement(**home))
    assert (row["tpot_s"], row["at_home"]) == (0.2, [True] * 3 + [False] * 2)
    assert row["anywhere_error"]["tpot_s"] == pytest.approx(
        row["predicted"]["tpot_s"] / 0.3 - 1)
    lost = checking._row(Predictor(made_up()), case, seen[3:], Placement(**home))
    assert [entry[:2] for entry in checking.summary([lost])] == [
        ("all, wherever its cores lay", 2)]
    assert checking.summary([row, lost])[-3][:2] == ("all", 2)
    checking._report([row, lost], str(written), str(tmp_path / "check.png"))
    said = " ".join(capsys.readouterr().out.split())
    assert "In 4 of 7 rounds the cores lay elsewhere" in said
    assert "1 configurations have no others" in said


@pytest.mark.parametrize("left", [5, 42 * checking._ROUNDS])
def test_a_grid_that_is_interrupted_keeps_its_points(observer, tmp_path, capsys, left):
    observer.left, written = left, tmp_path / "choice.json"
    if left == 5:
        with pytest.raises(KeyboardInterrupt):
            checking.run_choice(made_up(), [1, 2], str(written))
    else:
        checking.run_choice(made_up(), [1, 2], str(written))
    found = json.loads(written.read_text())
    assert len(found["points"]) == min(left, 42)
    assert {row["goal"] for row in found["rows"]}
    assert ("5 of them" in capsys.readouterr().out) == (left == 5)
    assert not list(tmp_path.glob(".part*"))


def test_nothing_measured_is_no_report(observer, tmp_path, capsys):
    observer.left = 0
    with pytest.raises(KeyboardInterrupt):
        checking.run_choice(made_up(), [1], str(tmp_path / "choice.json"))
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""
