"""TensorBoard over runs that were written: its data by HTTP, and its pages in a real browser."""

import json
import re
import shutil
import time
import urllib.parse
import urllib.request

import pytest
from tensorboard import program

from tests.measure import browser
from tests.measure.test_report import row
from tfspeed.measure import dashboard, tensorboard

KINDS = [{"name": "matrix products", "calls": 3, "seconds": 0.02, "share": 0.7},
         {"name": "attention", "calls": 2, "seconds": 0.01, "share": 0.3}]
ROWS = [
    row("baseline"),
    row("quantize", decode_tokens_per_s=70.0, perplexity=12.9, energy_j_per_token=0.4,
        energy_source="rapl",
        speedup={"tpot": {"ratio": 2.5, "low": 2.4, "high": 2.6}},
        profile={"source": "a clock", "step_s": 0.03, "kinds": KINDS, "parts": []}),
    row("prune", decode_tokens_per_s=50.0, perplexity=14.0)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The URL of a TensorBoard in this process, over three runs."""
    logdir = tmp_path_factory.mktemp("logs")
    for made in ROWS:
        tensorboard.write_run(logdir, made)
    board = program.TensorBoard()
    board.configure(argv=["", "--logdir", str(logdir), "--port=0", "--host=127.0.0.1",
                          "--load_fast=false"])
    url = board.launch().rstrip("/")
    for _ in range(200):  # it reads in the background; no clock: all may stand still
        if len(get(f"{url}/data/plugin/scalars/tags")) == len(ROWS) and \
                get(f"{url}/data/plugin/images/tags"):
            break
        time.sleep(0.1)
    return url


def get(url, body=None):
    headers = {"Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
        return json.load(answer)


def test_runs_and_scalars(site):
    found = get(f"{site}/data/plugin/scalars/tags")
    assert sorted(found) == sorted(map(tensorboard.run_name, ROWS))
    tags = found[tensorboard.run_name(ROWS[1])]
    assert {"latency/ttft_s", "throughput/decode_tokens_per_s", "throughput/tpot_speedup",
            "quality/perplexity", "energy/j_per_token_rapl", "profile/attention_s"} <= set(tags)
    query = urllib.parse.urlencode({"run": tensorboard.run_name(ROWS[1]),
                                    "tag": "energy/j_per_token_rapl"})
    (_, step, value), = get(f"{site}/data/plugin/scalars/scalars?{query}")
    assert (step, value) == (0, pytest.approx(0.4))
    images = get(f"{site}/data/plugin/images/tags")
    assert "profile/operators" in images[tensorboard.run_name(ROWS[1])]


def test_the_layout_is_shown_once_and_its_charts_have_data(site):
    layout = get(f"{site}/data/plugin/custom_scalars/layout")
    assert [c["title"] for c in layout["category"]] == list(dashboard.CHARTS)
    tags = {tag for tags in get(f"{site}/data/plugin/scalars/tags").values() for tag in tags}
    for category in layout["category"][:-1]:  # the last is of scripts/evolution.py
        titles = [chart["title"] for chart in category["chart"]]
        assert len(set(titles)) == len(titles)
        for chart in category["chart"]:
            patterns = chart.get("multiline", {}).get("tag", [])
            patterns += [value for series in chart.get("margin", {}).get("series", ())
                         for value in series.values()]
            for pattern in patterns:
                assert any(re.fullmatch(pattern, tag) for tag in tags), pattern


def test_runs_are_sorted_by_speed_and_by_quality(site):
    def sorted_by(tag, order):
        column = {"metric": {"tag": tag}, "order": order}
        body = {"experimentName": "", "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_RUNNING",
                "STATUS_SUCCESS", "STATUS_FAILURE"], "colParams": [column], "startIndex": 0,
                "sliceSize": 10, "aggregationType": "AGGREGATION_AVG"}
        answer = get(f"{site}/data/plugin/hparams/session_groups", body)
        return [group["hparams"]["strategy"] for group in answer["sessionGroups"]]

    experiment = get(f"{site}/data/plugin/hparams/experiment", {"experimentName": ""})
    names = {info["name"]["tag"] for info in experiment["metricInfos"]}
    assert {"throughput/decode_tokens_per_s", "quality/perplexity_delta"} <= names
    by_speed = sorted_by("throughput/decode_tokens_per_s", "ORDER_DESC")
    assert by_speed == ["quantize", "prune", "baseline"]
    assert sorted_by("quality/perplexity", "ORDER_ASC") == ["baseline", "quantize", "prune"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromedriver"), reason="chromium-driver is not installed: "
                    "apt-get install chromium chromium-driver")
def test_its_pages_in_a_browser(site):
    with browser.chromium(shutil.which("chromedriver")) as page:
        page.open(f"{site}/#timeseries")
        text = page.wait_for("latency", *map(tensorboard.run_name, ROWS))
        for words in ("latency", *map(tensorboard.run_name, ROWS)):
            assert words in text
        page.open("about:blank")  # another fragment alone loads nothing
        page.open(f"{site}/#custom_scalars")
        wanted = [*dashboard.CHARTS, *(f"{tag} ({tensorboard.run_name(made)})" for made in ROWS
                                       for tag in ("latency/ttft_s", "quality/perplexity"))]
        text = page.wait_for(*wanted)
        for words in wanted:
            assert words in text
        page.open("about:blank")
        page.open(f"{site}/#hparams")
        wanted = ["decode_tokens_per_s", "perplexity_delta", "strategy", "70.000",
                  *map(tensorboard.run_name, ROWS)]
        text = page.wait_for(*wanted)
        for words in wanted:
            assert words in text
