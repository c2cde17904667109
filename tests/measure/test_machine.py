"""Bandwidth, memory and environment: what is measured of the machine."""

import json
import time

import numpy as np
import pytest

from tfspeed import devices
from tfspeed.errors import TfspeedError
from tfspeed.litert import compiler
from tfspeed.measure import bandwidth
from tfspeed.measure import memory as memory_module
from tfspeed.measure.environment import environment
from tfspeed.measure.memory import PeakMemory

SMALL = 1 << 20


@pytest.mark.parametrize("threads", [1, 2])
def test_bandwidth_is_that_of_as_many_bytes_as_a_step_reads(threads, monkeypatch):
    read = []
    monkeypatch.setattr(bandwidth, "_measure",
                        lambda threads, size: read.append((threads, size)) or 5.0)
    assert bandwidth.read_bandwidth(threads, SMALL) == 5.0
    bandwidth.read_bandwidth(threads, 1 << 50)
    bandwidth.read_bandwidth(threads, 1)
    assert read[0] == (threads, SMALL)
    assert SMALL < read[1][1] <= 1 << 30
    assert 1 <= read[2][1] < SMALL


def test_bandwidth_is_bytes_over_seconds(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(bandwidth.time, "perf_counter", lambda: next(clock))
    # What a cache may hold is read so often that starting threads is nothing beside it.
    assert bandwidth.read_bandwidth(2, SMALL) == pytest.approx((64 << 20) / 1e9)
    assert bandwidth.read_bandwidth(2, 96 << 20) == pytest.approx((96 << 20) / 1e9)


def test_every_byte_is_read_with_and_without_a_compiler(monkeypatch):
    compiled = bandwidth._read()
    monkeypatch.setattr(compiler, "small_library", refuse)
    bandwidth._read.cache_clear()
    plain = bandwidth._read()
    bandwidth._read.cache_clear()
    assert plain is bandwidth._read_by_numpy
    assert compiled is not plain
    values = np.zeros(1001, np.uint64)
    for at in (0, 15, 16, 500, 999, 1000):  # whole lines, and what is left behind them
        values[:] = 0
        values[at] = 1 << 40
        assert compiled(values, 1) == compiled(values, 3) == plain(values, 3) == 1 << 40


def refuse(*_):
    raise TfspeedError("There is no compiler.")


def test_peak_memory_sees_what_is_already_freed():
    size = 200_000_000
    with PeakMemory() as memory:
        block = np.ones(size, np.uint8)
        del block
    assert memory.peak_rss - memory.start_rss > 0.9 * size
    assert memory.end_rss - memory.start_rss < 0.5 * size


def test_peak_memory_without_the_kernels_mark(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_module, "_CLEAR_REFS", tmp_path / "missing" / "file")
    with PeakMemory() as memory:
        block = np.ones(200_000_000, np.uint8)
        time.sleep(0.2)  # twenty looks of the watching thread
        del block
    assert memory.peak_rss - memory.start_rss > 0.9 * 200_000_000


def test_environment_is_json():
    found = json.loads(json.dumps(environment()))
    assert found["cores"] >= 1
    assert found["keras"].startswith("3.")
    assert found["cpu"]


def test_memory_bandwidth_is_that_of_the_device_in_use(monkeypatch):
    monkeypatch.setattr(bandwidth, "read_bandwidth", lambda threads, size: threads * size)
    monkeypatch.setattr(bandwidth, "device_read_bandwidth", lambda device: 3000.0)
    monkeypatch.setattr(bandwidth, "default_device", lambda: "CPU:0")
    assert bandwidth.memory_bandwidth(2, 10) == 20.0
    monkeypatch.setattr(bandwidth, "default_device", lambda: "GPU:0")
    assert bandwidth.memory_bandwidth(2, 10) == 3000.0


def test_a_compiled_sum_reads_a_devices_memory():
    assert bandwidth.device_read_bandwidth("CPU:0", buffer_bytes=SMALL) > 0


def test_memory_is_read_quarter_after_quarter():
    reader = bandwidth.MemoryReader(2, 16 << 20)
    assert [sum(chunk.nbytes for chunk in part) for part in reader._parts] == [4 << 20] * 4
    at = reader._at
    assert min(reader.read() for _ in range(3)) > 1e8
    assert reader._at == (at + 3) % 4


def test_the_last_of_the_caches(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "_CACHES", str(tmp_path))
    assert devices.last_level_cache_bytes() == 32 << 20  # nobody tells
    for index, size in enumerate(("64K", "2M", "98304K", "", "K", "7", "0K")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert devices.last_level_cache_bytes() == 96 << 20
