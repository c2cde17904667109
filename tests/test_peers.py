"""Peers are processes: they answer, die, or hang, and tfspeed says which."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import strategies
from tests.conftest import tiny_decoder
from tfspeed import bench_job, peers
from tfspeed.engines import create
from tfspeed.errors import TfspeedError
from tfspeed.measure import experiment
from tfspeed.measure.experiment import Workload
from tfspeed.measure.progress import Progress
from tfspeed.models.hf_writer import save_hf_folder

TALK = """
import json, sys
print("a library says hello on stdout")
print(json.dumps({"load_s": 1.0}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    count = request["new_tokens"]
    print(json.dumps({"seconds": 0.5 + 0.1 * (count - 1),
                      "tokens": [[7] * count for _ in request["prompts"]]}), flush=True)
"""
STREAM = """
import json, sys
print(json.dumps({"load_s": 1.0, "weights_bytes": 4000}), flush=True)
for line in sys.stdin:
    print(json.dumps({"seconds": 0.9, "tokens": [[7] * 5], "token_s": [0.3, 0.4, 0.5, 0.6, 0.9]}),
          flush=True)
"""
DIE = TALK.replace("    count", "    sys.stderr.write('out of luck'); sys.exit(3)\n    count")
HANG = "import time; time.sleep(1000)"


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Makes a peer called fake whose worker is the given script."""
    def make(script):
        worker = tmp_path / "worker.py"
        worker.write_text(script)
        monkeypatch.setitem(peers.PEERS, "fake", peers.Peer((), str(worker), "It is a fake."))
        return peers.PeerProcess("fake", Path(sys.executable), tmp_path, 1)
    return make


def test_a_peer_is_timed_beside_ours(fake, monkeypatch):
    monkeypatch.setattr(experiment, "load", lambda *_: tiny_decoder())
    process = fake(TALK)
    workload = Workload(8, 5, 2, repetitions=3)
    ours = [experiment.prepare("tiny", strategies.create("baseline"), "graph", workload, "")]
    timed, tokens = {"fake": []}, {}
    bench_job.interleave(ours, {"fake": process}, timed, tokens, Progress())
    bench_job.evaluate(ours, {"fake": process}, {}, tokens, "", Progress())
    process.close()
    assert [len(c.timings) for c in ours] == [3]
    assert len(timed["fake"]) == 3
    peer, mine = bench_job.all_rows(ours, {"fake": process}, timed, tokens, {}, 2)
    assert peer["tpot_s"]["median"] == pytest.approx(0.1)
    assert peer["ttft_s"]["median"] == pytest.approx(0.5)
    assert peer["same_tokens"] is False
    assert mine["same_tokens"] is True
    assert peer["dtype"] == "float32"  # what it was handed, whatever ours made of it
    assert peer["weights_bytes"] == tiny_decoder().weights_bytes
    assert peer["notes"] == ["It is a fake."]
    assert "speedup" not in peer
    assert mine["speedup"]["tpot"]["ratio"] == pytest.approx(
        0.1 / mine["tpot_s"]["median"], rel=1e-6)


def test_one_new_token_has_no_step(fake, monkeypatch):
    monkeypatch.setattr(experiment, "load", lambda *_: tiny_decoder())
    process = fake(TALK)
    workload = Workload(8, 1, 1, repetitions=1)
    ours = [experiment.prepare("tiny", strategies.create("baseline"), "graph", workload, "")]
    timed, tokens = {}, {}
    bench_job.interleave(ours, {"fake": process}, timed, tokens, Progress())
    process.close()
    peer, mine = bench_job.all_rows(ours, {"fake": process}, timed, tokens, {}, 2)
    assert "tpot_s" not in peer
    assert peer["ttft_s"]["median"] == pytest.approx(0.5)
    assert mine["speedup"]["ttft"]["low"] is None  # one sample has no interval


def test_a_streaming_peer_tells_its_own_times_and_quality(fake, monkeypatch):
    monkeypatch.setattr(experiment, "load", lambda *_: tiny_decoder())
    process = fake(STREAM)
    process.streams, process.variant = True, "Q8_0"
    workload = Workload(8, 5, 1, repetitions=2)
    ours = [experiment.prepare("tiny", strategies.create("baseline"), "graph", workload, "")]
    timed, tokens, quality = {}, {}, {}
    bench_job.interleave(ours, {"fake": process}, timed, tokens, Progress())
    bench_job.evaluate(ours, {"fake": process}, quality, tokens, "", Progress())
    process.close()
    peer, _ = bench_job.all_rows(ours, {"fake": process}, timed, tokens, quality, 2)
    assert peer["ttft_s"]["median"] == pytest.approx(0.3)
    assert peer["itl_s"]["samples"] == pytest.approx([0.1, 0.1, 0.1, 0.3] * 2)
    assert peer["weights_bytes"] == 4000
    assert quality == {}  # random tokens: perplexity says nothing


def test_a_peer_that_dies_is_a_clear_error(fake):
    process = fake(DIE)
    with pytest.raises(TfspeedError, match=r"exit_code=3(.|\n)*out of luck"):
        process.call([[1]], 2)


def test_a_peer_that_hangs_is_killed(fake, monkeypatch):
    monkeypatch.setattr(peers, "_READY_S", 1.0)
    with pytest.raises(TfspeedError, match="stopped without an answer"):
        fake(HANG)


def test_engines_of_a_bench():
    assert bench_job.split_engines("xla,graph") == ["xla", "graph"]
    assert bench_job.split_engines("fused:int8;fused:int4,head=int4") == [
        "fused:int8", "fused:int4,head=int4"]
    with pytest.raises(TfspeedError, match="engines=','"):
        bench_job.split_engines(",")


def test_unknown_peer():
    with pytest.raises(TfspeedError, match="peer='vllm'"):
        peers.install("vllm")


def test_the_keras_hub_worker_gives_our_tokens(tmp_path, monkeypatch):
    """Through the folder that we write, KerasHub reads our weights: the tokens must be ours."""
    if not importlib.util.find_spec("keras_hub"):
        pytest.skip("keras-hub is not installed: make test installs it")
    model = tiny_decoder()
    save_hf_folder(model, tmp_path)
    process = peers.PeerProcess("keras_hub", Path(sys.executable), tmp_path, 1)
    prompt = [5, 9, 2, 33]
    answer = process.call([prompt], 6)
    process.close()
    ours = np.stack(list(create("graph", model).generate([prompt], 6)), axis=1)
    np.testing.assert_array_equal(answer["tokens"], ours)
