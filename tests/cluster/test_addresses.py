import json
import socket

import pytest

from tfspeed.cluster import addresses
from tfspeed.cluster.addresses import Cluster
from tfspeed.errors import TfspeedError


def read(monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))
    return addresses.from_environment()


def test_tf_config_there_and_back(monkeypatch):
    cluster = Cluster(("a:1", "b:2", "10.0.0.3:3"), 2)
    assert read(monkeypatch, cluster.tf_config()) == cluster
    chief = {"cluster": {"worker": ["b:2", "c:3"], "chief": ["a:1"]},
             "task": {"type": "worker", "index": 1}}
    cluster = read(monkeypatch, chief)
    assert cluster == Cluster(("a:1", "b:2", "c:3"), 2, chief_job=True)
    assert json.loads(cluster.tf_config()) == chief
    assert json.loads(cluster.of(0).tf_config())["task"] == {"type": "chief", "index": 0}
    assert addresses.from_hosts("a:1, b:2", 1) == Cluster(("a:1", "b:2"), 1)


@pytest.mark.parametrize("empty", ["", " ", "{}", '{"cluster": {}}'])
def test_no_cluster(monkeypatch, empty):
    assert read(monkeypatch, empty) is None


TASK = {"type": "worker", "index": 0}


@pytest.mark.parametrize(("config", "words"), [
    ("{", "no JSON"), ("[1]", "must map"), ({"cluster": ["a:1"], "task": TASK}, "must map"),
    ({"cluster": {"worker": "a:1"}, "task": TASK}, "must map"),
    ({"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": TASK}, "not ps"),
    ({"cluster": {"worker": ["a:1"], "chief": ["b:1", "c:1"]}, "task": TASK}, "one chief"),
    ({"cluster": {"worker": ["a:1"]}}, "`task`"),
    ({"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}, "`task`"),
    ({"cluster": {"worker": ["a:1"]}, "task": {"type": ["worker"], "index": 0}}, "`task`"),
    ({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}, r"\[0, 1\)"),
    ({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "x"}}, r"\[0, 1\)"),
    ({"cluster": {"worker": ["a"]}, "task": TASK}, "host:port"),
    ({"cluster": {"worker": ["a:1", "a:1"]}, "task": TASK}, "address of its own"),
    ({"cluster": {"worker": ["a:99999"]}, "task": TASK}, "host:port"),
    ({"cluster": {"worker": ["a:\u0667\u0668"]}, "task": TASK}, "host:port")])
def test_a_wrong_tf_config_says_why(monkeypatch, config, words):
    with pytest.raises(TfspeedError, match=words):
        read(monkeypatch, config)


def test_local_addresses_are_free_and_a_taken_one_is_told():
    cluster = addresses.local(3, "127.0.0.1")
    assert len(set(cluster.addresses)) == 3
    with socket.socket() as other:
        host, _, port = cluster.addresses[0].rpartition(":")
        addresses.check_free(cluster.addresses[0], "127.0.0.1")
        other.bind((host, int(port)))
        other.listen()
        with pytest.raises(TfspeedError, match=f"address='{host}:{port}'.*taken"):
            addresses.check_free(cluster.addresses[0], "127.0.0.1")
        assert addresses.silent(cluster.addresses) == [1, 2]
    with pytest.raises(TfspeedError, match="--bind"):
        addresses.local(1, "192.0.2.1")  # TEST-NET: nobody's
