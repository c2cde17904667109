import os
import threading

import pytest

from tfspeed.affinity import check_cores, pinned
from tfspeed.errors import TfspeedError


def masks():
    return {tid: os.sched_getaffinity(int(tid)) for tid in os.listdir("/proc/self/task")}


def test_all_threads_are_held_and_let_go():
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(2)]
    threads[0].start()
    before = masks()
    with pinned(1):
        threads[1].start()  # inherits
        first = {min(os.sched_getaffinity(0))}
        assert len(os.sched_getaffinity(0)) == 1
        assert all(mask == first for mask in masks().values())
    after = masks()
    done.set()
    assert len(after) > 2
    assert all(after[tid] == mask for tid, mask in before.items())
    assert after[str(threads[1].native_id)] == os.sched_getaffinity(0)


def test_cores_are_given_back_after_an_error():
    before = os.sched_getaffinity(0)
    with pytest.raises(RuntimeError), pinned(1):
        raise RuntimeError
    assert os.sched_getaffinity(0) == before


def test_zero_means_as_they_are():
    before = masks()
    with pinned(0):
        assert masks() == before


@pytest.mark.parametrize("cores", [-1, 1000])
def test_cores_that_are_none(cores):
    with pytest.raises(TfspeedError, match=f"cores_for_baseline={cores}"):
        check_cores("cores_for_baseline", cores)
