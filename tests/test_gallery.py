"""The pictures of the documents: small, up to date, in both themes; and one look for all."""

import json
import types
from pathlib import Path

import pytest

from tfspeed import gallery_job
from tfspeed.errors import TfspeedError
from tfspeed.measure import pictures, predictions, roofline
from tfspeed.serving import goodput

FOLDER = Path(__file__).parents[1] / "scripts" / "gallery"


def test_what_is_committed_was_drawn_from_its_json():
    assert (FOLDER / "pareto.json").exists()
    assert gallery_job.stale(FOLDER) == []
    drawn = {path.name for path in FOLDER.iterdir()}
    for path in FOLDER.glob("*.json"):
        assert path.stat().st_size < gallery_job.LIMIT
        for theme in gallery_job.THEMES:
            picture = FOLDER / f"{path.stem}-{theme}.svg"
            assert picture.stat().st_size < gallery_job.LIMIT
            drawn.remove(picture.name)
        drawn.remove(path.name)
    assert not drawn  # nothing that no JSON stands behind


def test_documents_show_the_pictures_that_there_are():
    for document in ("README.md", "BUILD.md"):
        for line in (FOLDER.parents[1] / document).read_text("utf-8").splitlines():
            for part in line.split('"'):
                if part.startswith("scripts/gallery/"):
                    assert (FOLDER.parents[1] / part).exists(), (document, part)


def test_new_figures_are_taken_over_and_drawn(tmp_path, capsys):
    rows = [{"strategy": "x", "engine": "litert", "dtype": "float32", "perplexity_delta": 0.01,
             "tpot_s": {"median": 0.01, "samples": [0.01] * 500}, "itl_s": {"samples": [1]},
             "placement": [{"turn_s": 3e-8}] * 500,
             "speedup": {"tpot": {"ratio": 2.0, "low": 1.9, "high": 2.1}}}]
    (tmp_path / "results.json").write_text(json.dumps({"environment": {"cpu": "c"}, "rows": rows}))
    (tmp_path / "g").mkdir()

    def run(folder, *take):
        gallery_job.run(types.SimpleNamespace(folder=str(tmp_path / folder), take=take))

    for folder, take in (("none", ()), ("g", ("x",)), ("g", ("pareto=none.json",)), ("g", ())):
        with pytest.raises(TfspeedError):
            run(folder, *take)
    run("g", f"pareto={tmp_path / 'results.json'}")
    assert "pareto-dark.svg" in capsys.readouterr().out
    kept = json.loads((tmp_path / "g" / "pareto.json").read_text())
    assert kept["environment"] == {"cpu": "c"}
    assert kept["rows"][0]["tpot_s"] == {"median": 0.01}
    assert not {"itl_s", "placement"} & set(kept["rows"][0])
    light, dark = ((tmp_path / "g" / f"pareto-{theme}.svg").read_text() for theme in ("light",
                                                                                     "dark"))
    assert ">x, litert<" in light  # letters, not their outlines
    assert "#0d1117" in dark
    assert "#0d1117" not in light
    assert gallery_job.stale(tmp_path / "g") == []
    (tmp_path / "g" / "pareto.json").write_text("{}")
    assert gallery_job.stale(tmp_path / "g") == ["pareto-light.svg", "pareto-dark.svg"]


def test_a_picture_is_the_same_each_time():
    def paint(figure):
        figure.subplots().plot([1, 2], [1, 2], label="a line")

    first, second = (pictures.rendered(paint, (4, 3), "svg") for _ in range(2))
    assert first == second
    assert first != pictures.rendered(paint, (4, 3), "svg", dark=True)


def test_colours_are_legible_on_their_paper():
    def luminance(color):
        parts = [int(color[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for paper, ink, _, colors in pictures._PAPERS.values():
        for color in (ink, pictures.MUTED, *colors):
            bright, dim = sorted((luminance(paper), luminance(color)), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 3, (paper, color)


def test_rows_that_lack_figures_are_left_out():
    whole = {"tpot_s": {"median": 0.01, "cv": 0.0}, "step_bytes": 10**8, "batch": 1,
             "read_bandwidth_gb_per_s": 20.0, "strategy": "x", "dtype": "float32",
             "engine": "xla", "model": "m", "threads": 2, "prompt_tokens": 1, "new_tokens": 2,
             "repetitions": 3}
    assert roofline.usable([whole, {"tpot_s": {"median": 1.0}}]) == [whole]
    svg = pictures.rendered(roofline.painter([whole]), roofline.SIZE, "svg").decode()
    assert "x, xla" in svg
    said = [{"tpot_s": {"median": 0.010}, "predicted": {"tpot_s": 0.012, "weights_bytes": 5}},
            {"tpot_s": None, "predicted": {"tpot_s": 1.0}}, {"tpot_s": {"median": 1.0}}]
    assert predictions.pairs(said) == {"tpot_s": [(0.010, 0.012)]}
    svg = pictures.rendered(predictions.painter(said), predictions.SIZE, "svg").decode()
    assert "off by 20%" in svg


def test_goodput_over_the_rate():
    def row(rate, good):
        return {"request_rate": rate, "model_id": "m", "engine": "e", "num_prompts": 5,
                "request_throughput": 1.0,
                "goodputs": [{"limits_ms": {"ttft": 500.0, "tpot": 30.0}, "request_goodput": good}]}

    rows = [row(2.0, 0.5), row(1.0, 1.0), row(float("inf"), 0.1), row(None, 0.1)]
    svg = pictures.rendered(goodput.painter(rows), goodput.SIZE, "svg").decode()
    assert "good: TTFT 500, TPOT 30 ms" in svg
    assert pictures.rendered(goodput.painter([]), goodput.SIZE).startswith(b"\x89PNG")


@pytest.mark.parametrize("size", [(40, 400)])
def test_a_picture_that_is_too_large_is_refused(tmp_path, monkeypatch, size):
    monkeypatch.setattr(gallery_job, "LIMIT", 100)
    (tmp_path / "pareto.json").write_text(json.dumps({"rows": [
        {"strategy": "x", "engine": "litert", "dtype": "float32", "perplexity_delta": 0.01,
         "speedup": {"tpot": {"ratio": 2.0, "low": 1.9, "high": 2.1}}}]}))
    with pytest.raises(TfspeedError, match="too large"):
        gallery_job.draw(tmp_path)
