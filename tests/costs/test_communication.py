"""The formulas against collectives that are played through, message by message."""

import numpy as np
import pytest

from tfspeed.costs import communication, loopback
from tfspeed.costs.communication import Cost, Link
from tfspeed.errors import TfspeedError


def play_ring(workers, elements, gather_only=False):
    """Runs a ring; returns the values of each worker, and the elements that each has sent."""
    data = np.arange(workers * elements, dtype=np.int64).reshape(workers, elements) ** 2
    total, sent = data.sum(axis=0), np.zeros(workers, int)
    parts = [list(np.array_split(row, workers)) for row in data]
    phases = [False] if gather_only else [True, False]  # adding up, then handing round
    for adds in phases:
        for round_number in range(workers - 1):
            shift = round_number if adds else round_number - (0 if gather_only else 1)
            moves = [(w, (w - shift) % workers) for w in range(workers)]
            messages = [(w, p, parts[w][p].copy()) for w, p in moves]
            for w, p, message in messages:
                sent[w] += message.size
                after = (w + 1) % workers
                parts[after][p] = parts[after][p] + message if adds else message
    return [np.concatenate(p) for p in parts], sent, total


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_a_ring_sends_what_the_formula_says(workers):
    elements = 24 * workers
    found, sent, total = play_ring(workers, elements)
    for values in found:
        np.testing.assert_array_equal(values, total)
    cost = communication.all_reduce(workers, elements)
    assert set(sent) == {cost.sent_bytes}
    assert cost.total_bytes == sent.sum()
    assert cost.messages == 2 * (workers - 1)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_gathering_and_scattering_are_the_halves_of_an_all_reduce(workers):
    both = communication.all_reduce(workers, 1000)
    scatter = communication.reduce_scatter(workers, 1000)
    gather = communication.all_gather(workers, 1000)
    assert scatter.messages + gather.messages == both.messages
    assert scatter.sent_bytes + gather.sent_bytes == pytest.approx(both.sent_bytes)
    _, sent, _ = play_ring(workers, 1000 * workers, gather_only=True)
    assert set(sent) == {communication.all_gather(workers, 1000 * workers).sent_bytes}


@pytest.mark.parametrize(("workers", "messages"), [(1, 0), (2, 1), (3, 2), (4, 2), (7, 4)])
def test_a_broadcast_goes_down_a_tree(workers, messages):
    cost = communication.broadcast(workers, 10)
    assert cost.messages == messages
    assert cost.waited_bytes == 10 * messages
    assert cost.total_bytes == 10 * (workers - 1)  # each but the first gets it once
    assert cost.sent_bytes == 10 * min(2, workers - 1)


def test_seconds():
    link = Link(alpha_s=1e-3, bytes_per_s=1e6)
    assert communication.point_to_point(5e5).seconds(link) == pytest.approx(0.501)
    assert Cost(6, 2e6, 8e6, 2e6).seconds(link) == pytest.approx(2.006)
    assert communication.all_reduce(1, 1e9).seconds(link) == 0  # alone


def test_a_link_is_found_from_its_times():
    link = Link(alpha_s=25e-6, bytes_per_s=2e9)
    sizes = [1e3, 1e5, 1e7]
    found = communication.fit(sizes, [communication.point_to_point(s).seconds(link) for s in sizes])
    assert found.alpha_s == pytest.approx(link.alpha_s)
    assert found.bytes_per_s == pytest.approx(link.bytes_per_s)


@pytest.mark.parametrize("make", [
    lambda: communication.all_reduce(0, 1), lambda: communication.all_gather(2, -1),
    lambda: Link(-1, 1), lambda: Link(0, 0), lambda: Link(float("nan"), 1),
    lambda: communication.fit([1], [1]), lambda: communication.fit([1, 2], [2, 1])])
def test_what_cannot_be_is_refused(make):
    with pytest.raises(TfspeedError):
        make()


def test_a_message_on_loopback():
    link = loopback.measure()
    assert 0 <= link.alpha_s < 0.1
    assert 1e7 < link.bytes_per_s < 1e12


def test_times_that_were_disturbed_are_measured_again(monkeypatch):
    good = [2e-5 + size / 1e9 for size in loopback.SIZES]
    times = iter([*good[::-1], *good])
    monkeypatch.setattr(loopback, "_exchange", lambda connection, size: next(times))
    assert loopback.measure().alpha_s == pytest.approx(1e-5, rel=0.01)
    times = iter(good[::-1] * 9)
    with pytest.raises(TfspeedError, match="A link is fitted"):
        loopback.measure()
    times, links = iter(good * 9), iter([Link(0, 1e9), Link(1e-6, 1e9)])
    monkeypatch.setattr(loopback, "fit", lambda sizes, seconds: next(links))
    assert loopback.measure().alpha_s == 1e-6


def test_a_link_that_breaks_is_said(monkeypatch):
    monkeypatch.setattr(loopback, "_ECHO", "print(1, flush=True)")
    with pytest.raises(TfspeedError, match="loopback"):
        loopback.measure()
