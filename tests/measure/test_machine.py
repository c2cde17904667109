"""Bandwidth, memory and environment: what is measured of the machine."""

import json
import time

import numpy as np
import pytest

from tfspeed.measure import bandwidth
from tfspeed.measure import memory as memory_module
from tfspeed.measure.environment import environment
from tfspeed.measure.memory import PeakMemory

SMALL = 1 << 20


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tfspeed" / "bandwidth.json"


def test_bandwidth_is_measured_once(cache):
    first = bandwidth.read_bandwidth(2, buffer_bytes=SMALL)
    assert first > 0
    (key, value), = json.loads(cache.read_text()).items()
    assert value == first
    assert "2 threads" in key
    cache.write_text(json.dumps({key: 123.0}))
    assert bandwidth.read_bandwidth(2, buffer_bytes=SMALL) == 123.0
    assert bandwidth.read_bandwidth(1, buffer_bytes=SMALL) != 123.0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": null}'])
def test_a_damaged_cache_is_measured_again(cache, text):
    cache.parent.mkdir()
    cache.write_text(text)
    assert bandwidth.read_bandwidth(1, buffer_bytes=SMALL) > 0


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert bandwidth.read_bandwidth(1, buffer_bytes=SMALL) > 0


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


def test_memory_bandwidth_is_that_of_the_device_in_use(cache, monkeypatch):
    monkeypatch.setattr(bandwidth, "read_bandwidth", lambda threads: 10.0 * threads)
    monkeypatch.setattr(bandwidth, "device_read_bandwidth", lambda device: 3000.0)
    monkeypatch.setattr(bandwidth, "default_device", lambda: "CPU:0")
    assert bandwidth.memory_bandwidth(2) == 20.0
    monkeypatch.setattr(bandwidth, "default_device", lambda: "GPU:0")
    assert bandwidth.memory_bandwidth(2) == 3000.0


def test_a_compiled_sum_reads_a_devices_memory():
    assert bandwidth.device_read_bandwidth("CPU:0", buffer_bytes=SMALL) > 0
