"""Where a step's time goes: sums, shares and tables with known answers."""

import io

import rich.console

from tfspeed.measure import profile

PARTS = [{"name": "a", "kind": "product", "calls": 1, "seconds": 0.003},
         {"name": "b", "kind": "product", "calls": 2, "seconds": 0.005},
         {"name": "c", "kind": "sum", "calls": 1, "seconds": 0.0},
         {"name": "stage", "calls": 30, "seconds": 0.002}]
ROW = {"strategy": "baseline", "dtype": "float32", "engine": "litert",
       "profile": profile.summary(PARTS, "a clock")}


def test_kinds_are_summed_and_sorted():
    made = ROW["profile"]
    assert made["step_s"] == 0.01
    assert made["source"] == "a clock"
    assert [(k["name"], k["calls"], round(k["share"], 3)) for k in made["kinds"]] == [
        ("product", 3, 0.8), ("stage", 30, 0.2), ("sum", 1, 0.0)]
    assert [p["name"] for p in made["parts"]] == ["b", "a", "stage"]


def test_tables_show_kinds_then_the_slowest_parts():
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(profile.table(ROW))
    shown = console.export_text()
    assert "baseline, litert: 10.00 ms" in shown
    lines = [line.split() for line in shown.splitlines() if line.split()]
    assert ["product", "3", "8.000", "80.0", "%"] in lines
    assert lines.index(["b", "2", "5.000", "50.0", "%"]) > lines.index(
        ["sum", "1", "0.000", "0.0", "%"])
    assert sum(line[0] == "stage" for line in lines) == 1  # a kind of its own: not shown twice
    assert "| b | 2 | 5.000 | 50.0 % |" in profile.markdown(ROW)


def test_nothing_measured_is_no_error():
    assert profile.summary([], "none")["kinds"] == []
