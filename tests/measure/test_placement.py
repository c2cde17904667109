"""Where cores lie is told from what they do, or not at all."""

import types

import pytest

from tfspeed.devices import available_cores
from tfspeed.measure import placement
from tfspeed.measure.placement import Placement, PlacementReader, usual

NEAR, FAR, SHARED = Placement(26e-9, 7.3e9), Placement(157e-9, 7.2e9), Placement(31e-9, 3.7e9)


def test_placements_are_alike_where_nothing_moved():
    assert NEAR.like(Placement(41e-9, 6.4e9))  # neighbours on the other threads of their cores
    assert not NEAR.like(FAR)
    assert not FAR.like(NEAR)
    assert not NEAR.like(SHARED)
    assert Placement(0.0, 3.7e9).like(Placement(0.0, 3.0e9))


def test_usual_is_what_was_seen_most():
    assert usual([FAR, NEAR, SHARED, Placement(28e-9, 7.1e9), FAR, Placement(27e-9, 7.4e9)]) == \
        Placement(27e-9, 7.3e9)
    assert usual([]) is None


@pytest.mark.parametrize("threads", [1, 2])
def test_cores_are_read(threads):
    if available_cores() < threads or not placement._library():
        pytest.skip("needs a C compiler, and a core for each")
    with PlacementReader(threads) as reader:
        found = [each for each in (reader.read() for _ in range(5)) if each]
    assert found
    for each in found:
        assert each.multiplied > 1e7
        assert (1e-9 < each.turn_s < 1e-3) if threads == 2 else each.turn_s == 0


def test_without_a_compiler_nothing_is_told(monkeypatch):
    monkeypatch.setattr(placement, "_library", lambda: None)
    assert PlacementReader(2).read() is None


def test_a_core_that_does_not_run_is_not_told(monkeypatch):
    made = types.SimpleNamespace(tfspeed_turn=lambda line, second: 3e-8 * second,
                                 tfspeed_multiply=lambda line, threads, seconds: 2e9)
    monkeypatch.setattr(placement, "_library", lambda: made)
    monkeypatch.setattr(placement, "_cores", lambda threads: [None] * threads)
    with PlacementReader(2) as reader:
        assert reader.read() is None
        monkeypatch.setattr(made, "tfspeed_turn", lambda line, second: 3e-8)
        assert reader.read() == Placement(3e-8, 4e9)
        monkeypatch.setattr(made, "tfspeed_multiply", lambda line, threads, seconds: 0.0)
        assert reader.read() is None


def test_threads_that_may_not_be_held_to_a_core_are_read_all_the_same(monkeypatch):
    def refuse(process, cores):
        raise PermissionError("no")

    monkeypatch.setattr(placement.os, "sched_setaffinity", refuse, raising=False)
    PlacementReader(1).read()


def test_as_many_cores_as_threads_are_read(monkeypatch):
    monkeypatch.setattr(placement.os, "sched_getaffinity", lambda process: {7, 3, 5},
                        raising=False)
    assert placement._cores(2) == [3, 5]
    assert placement._cores(4) == [None] * 4
