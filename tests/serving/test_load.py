"""Loads and what is told of how they were served."""

import math
import types

import numpy as np
import pytest

from tests.serving.serving import serving
from tfspeed.errors import TfspeedError
from tfspeed.measure.progress import Progress
from tfspeed.serving import bench, bench_job
from tfspeed.serving.load import Call, calls, poisson, trace

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:48.0000000+00:00,10,1
"""


def test_poisson_arrivals():
    load = poisson(4000, 5.0, 100, 10, 0.5)
    gaps = np.diff([at for at, _, _ in load])
    assert gaps.mean() == pytest.approx(0.2, rel=0.1)
    assert gaps.std() == pytest.approx(0.2, rel=0.1)  # as an exponential's
    prompts = [p for _, p, _ in load]
    assert 50 <= min(prompts) < 60 < 140 < max(prompts) <= 150
    assert load == poisson(4000, 5.0, 100, 10, 0.5)
    assert {at for at, _, _ in poisson(9, math.inf, 1, 1, 0)} == {0.0}
    with pytest.raises(TfspeedError, match="rate=0"):
        poisson(1, 0, 1, 1, 0)


def test_a_trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    assert trace(str(path), 9, None, 1.0) == [
        (0.0, 374, 44), (pytest.approx(1.31941, abs=1e-4), 10, 1),
        (pytest.approx(4.314579, abs=1e-4), 396, 109)]
    stretched = trace(str(path), 9, 2.0, 0.5)
    assert stretched[-1] == (pytest.approx(1.0), 198, 54)
    assert [at for at, _, _ in trace(str(path), 9, math.inf, 1)] == [0, 0, 0]
    assert len(trace(str(path), 2, None, 1.0)) == 2


@pytest.mark.parametrize(("text", "words"), [
    ("a,b\n1,2\n", "needs the columns"), (TRACE.splitlines()[0], "no requests"),
    (TRACE.replace("374", "many"), "row of the trace"), (TRACE.replace("2023", "x"), "row of"),
    (b"\xff\xfe\x00", "readable CSV")])
def test_traces_that_are_none(tmp_path, text, words):
    path = tmp_path / "trace.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TfspeedError, match=words):
        trace(str(path), 9, None, 1.0)


def test_prompts_fit_and_begin_alike():
    made, cut = calls([(0.0, 20, 5), (1.0, 500, 50)], list(range(30)), 64, shared=10)
    assert [len(c.prompt) for c in made] == [30, 63]
    assert [c.new_tokens for c in made] == [5, 1]
    assert cut == 1
    assert made[0].prompt[:10] == made[1].prompt[:10] == list(range(10))
    with pytest.raises(TfspeedError, match="no room"):
        calls([(0.0, 5, 5)], [1], 64, shared=64)


def test_the_summary_is_vllms():
    call = Call(0, [1, 2, 3], 3)
    served = [bench.Served(call, 10.0, [10.5, 10.6, 10.7], 3),
              bench.Served(call, 10.0, [11.0, 11.5, 12.0], 3),
              bench.Served(call, 10.0, [], error="429")]
    row = bench.summary(served, 4.0, bench.parse_goodput("ttft:600,tpot:200"))
    assert (row["completed"], row["failed"], row["max_concurrent_requests"]) == (2, 1, 2)
    assert row["output_throughput"] == 1.5
    assert row["total_token_throughput"] == 3.0
    assert row["mean_ttft_ms"] == pytest.approx(750)
    assert row["mean_tpot_ms"] == pytest.approx(300)
    assert row["median_itl_ms"] == pytest.approx(300)
    assert row["mean_e2el_ms"] == pytest.approx(1350)
    assert row["request_goodput"] == 0.25
    for bad in ("ttft", "ttft:x", "speed:3", "ttft:-1"):
        with pytest.raises(TfspeedError, match="limits in milliseconds"):
            bench.parse_goodput(bad)


def test_over_http_and_without():
    with serving() as (port, server):
        made = [Call(0.02 * i, list(range(1, 9 + i)), 5 + i) for i in range(6)]
        for target in (bench.HttpTarget(f"http://127.0.0.1:{port}", "tiny"),
                       bench.WorkerTarget(server.worker)):
            served, seconds = bench.run(target, made)
            row = bench.summary(served, seconds, {})
            assert row["failed"] == 0
            assert row["total_output_tokens"] == sum(c.new_tokens for c in made)
            assert all(len(s.times) == s.tokens for s in served)
        target = bench.WorkerTarget(server.worker)
        row = bench.in_turn(target, [Call(0, [1, 2, 3], 2)] * 3)  # one after the other
        assert row["followers"] == 2
        assert row["worst_followers_ttft_ms"] >= row["median_followers_ttft_ms"] > 0
        assert set(bench.in_turn(target, made[:1])) == {"first_ttft_ms", "followers"}
        with pytest.raises(TfspeedError, match="must fit"):
            bench.in_turn(target, [Call(0, [1], 10**6)])
        refused, _ = bench.run(bench.HttpTarget(f"http://127.0.0.1:{port}", "other"), made[:1])
        assert refused[0].error.startswith("404")
        with pytest.raises(TfspeedError, match=r"No request was answered.*404"):
            bench_job._measured(bench.HttpTarget(f"http://127.0.0.1:{port}", "other"),
                                (made[:1], 0), math.inf, [], Progress())
    with pytest.raises(TfspeedError, match="--url"):
        bench.HttpTarget("ftp://x", "tiny")


@pytest.mark.parametrize(("goodput", "rates"), [("", "1,2"), ("ttft:500", "1"), ("ttft:500", None)])
def test_a_picture_needs_limits_and_several_rates(goodput, rates, tmp_path):
    flags = types.SimpleNamespace(
        goodput=goodput, rates=rates, trace=None, requests=2, prompt_tokens=1, new_tokens=1,
        spread=0.0, output=str(tmp_path / "o.json"), picture=str(tmp_path / "p.png"))
    with pytest.raises(TfspeedError, match="--picture"):
        bench_job.run(flags)
