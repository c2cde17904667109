import math

import pytest

from tfspeed.measure.metrics import Timing, finite, latency, roofline, speedup, summary


def test_summary_of_known_samples():
    found = summary([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found["median"] == 3.0
    assert found["p90"] == pytest.approx(4.6)
    assert found["p99"] == pytest.approx(4.96)
    assert found["cv"] == pytest.approx(math.sqrt(2.5) / 3)
    assert found["samples"] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert summary([2.0])["cv"] == 0.0


def test_latency_by_hand():
    # Called at 10; tokens after 0.5, 0.6, 0.8 and 1.1 s; then the same shifted and slower.
    timings = [Timing(10.0, [10.5, 10.6, 10.8, 11.1]), Timing(20.0, [20.7, 20.9, 21.1, 21.3])]
    found = latency(timings, batch=2, prompt_tokens=30)
    assert found["ttft_s"]["samples"] == pytest.approx([0.5, 0.7])
    assert found["e2e_s"]["samples"] == pytest.approx([1.1, 1.3])
    assert found["tpot_s"]["samples"] == pytest.approx([0.2, 0.2])
    assert found["itl_s"]["samples"] == pytest.approx([0.1, 0.2, 0.3, 0.2, 0.2, 0.2])
    assert found["prefill_tokens_per_s"] == pytest.approx(2 * 30 / 0.6)
    assert found["decode_tokens_per_s"] == pytest.approx(2 * 3 / 0.6)
    assert found["output_tokens_per_s"] == pytest.approx(2 * 4 / 1.2)
    assert found["noisy"] is True  # the two TTFTs differ by far more than 5 %


def test_quiet_timings_are_not_noisy():
    timings = [Timing(0.0, [1.0, 1.1]), Timing(0.0, [1.01, 1.11])]
    assert latency(timings, 1, 8)["noisy"] is False


def test_one_new_token_has_no_tpot():
    found = latency([Timing(0.0, [0.25])], batch=1, prompt_tokens=8)
    assert "tpot_s" not in found
    assert found["output_tokens_per_s"] == pytest.approx(4.0)


def test_roofline():
    found = roofline(step_bytes=500_000_000, tpot_s=0.025, batch=3, bandwidth_gb_per_s=40.0)
    assert found["achieved_gb_per_s"] == pytest.approx(20.0)
    assert found["roofline_fraction"] == pytest.approx(0.5)
    assert found["limit_tokens_per_s"] == pytest.approx(3 * 80.0)


def test_speedup_is_over_one_for_the_faster():
    found = speedup([2.0, 2.1, 1.9], [1.0, 1.0, 1.0])
    assert found["ratio"] == pytest.approx(2.0)
    assert 1.9 <= found["low"] <= 2.0 <= found["high"] <= 2.1


def test_finite():
    assert finite({"a": [1.0, math.nan], "b": math.inf, "c": "x"}) == {
        "a": [1.0, None], "b": None, "c": "x"}
