"""The supervisor over scripts that only pretend to be workers: no TensorFlow, real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tfspeed.cluster import addresses, binding
from tfspeed.cluster.supervisor import LOST, Supervisor
from tfspeed.errors import TfspeedError

ROOT = Path(__file__).parents[2]
HEAD = """
import json, os, pathlib, signal, sys, time
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
here = pathlib.Path(sys.argv[1])
(here / f"{index}.pid").write_text(str(os.getpid()))
def join(): os.write(int(os.environ["TFSPEED_STATUS"]), b"joined")
def first():
    made = here / f"{index}.been"
    been = made.exists()
    made.touch()
    return not been
"""


def supervisor(folder, body, said=None, **changes):
    script = folder / "worker.py"
    script.write_text(HEAD + body)
    settings = {"bind": binding.ANYWHERE, "join_s": 20, "restarts": 0,
                "say": (said if said is not None else []).append} | changes
    return Supervisor(lambda: addresses.local(2, "127.0.0.1"), [0, 1],
                      [str(script), str(folder)], **settings)


def gone(folder):
    """Whether no worker of a test runs any more."""
    pids = [int(path.read_text()) for path in folder.glob("*.pid")]
    assert pids
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"
                   for pid in pids)


@pytest.mark.parametrize("code", [0, 2, 3, 130])
def test_the_chief_decides_how_it_ends(tmp_path, code):
    wait = "join()\nif index: time.sleep(0 if not CODE else 60)\nsys.exit(0 if index else CODE)"
    assert supervisor(tmp_path, wait.replace("CODE", str(code))).run() == code
    assert gone(tmp_path)


def test_a_job_that_is_done_is_done_however_the_others_end(tmp_path):
    """TensorFlow may abort in a worker whose chief has left."""
    said = []
    body = "join()\nif index:\n    time.sleep(0.5)\n    os.kill(os.getpid(), signal.SIGABRT)"
    assert supervisor(tmp_path, body, said, restarts=1).run() == 0
    assert not said


def test_workers_that_lost_each_other_say_why(tmp_path):
    body = f"join()\nos.write(int(os.environ['TFSPEED_STATUS']), b'cause=1')\nsys.exit({LOST})"
    with pytest.raises(TfspeedError, match=r"lost each other\. cause=1"):
        supervisor(tmp_path, body).run()


def test_a_killed_worker_starts_all_again(tmp_path):
    said = []
    body = ("join()\n"
            "if index == 0 and first(): time.sleep(60)\n"
            "if index == 1 and first():\n"
            "    while not (here / '0.been').exists(): time.sleep(0.01)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n")
    assert supervisor(tmp_path, body, said, restarts=1).run() == 0
    assert len(said) == 1
    assert said[0].startswith("Worker 1 (127.0.0.1:")
    assert "killed by SIGKILL. All workers are stopped and started again." in said[0]
    assert gone(tmp_path)


def test_one_death_too_many_is_an_error(tmp_path):
    body = "join()\ntime.sleep(60 if index else 0)\nos.kill(os.getpid(), signal.SIGTERM)"
    with pytest.raises(TfspeedError, match=r"Worker 0 .*killed by SIGTERM"):
        supervisor(tmp_path, body, restarts=1).run()
    assert gone(tmp_path)


def test_a_worker_that_fails_is_quoted(tmp_path):
    body = "join()\nif index: raise SystemError('the reason')\ntime.sleep(60)"
    with pytest.raises(TfspeedError, match=r"Worker 1 .*failed.*the reason"):
        supervisor(tmp_path, body).run()


def test_the_mistake_of_another_worker_is_told_once(tmp_path, capfd):
    body = ("join()\nif index:\n    print('error: no such file', file=sys.stderr)\n    sys.exit(2)"
            f"\ntime.sleep(0.5)\nsys.exit({LOST})")
    assert supervisor(tmp_path, body).run() == 2
    assert capfd.readouterr().err.count("no such file") == 1


def test_a_frozen_worker_is_named(tmp_path):
    body = f"join()\nif index: os.kill(os.getpid(), signal.SIGSTOP)\nsys.exit({LOST})"
    with pytest.raises(TfspeedError, match=r"Worker 1 .*does not answer"):
        supervisor(tmp_path, body).run()
    assert gone(tmp_path)


def test_a_worker_that_never_comes_is_named(tmp_path):
    body = """
import socket
if index == 0:
    address = json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"][0]
    server = socket.create_server((address.split(":")[0], int(address.split(":")[1])))
time.sleep(60)"""
    with pytest.raises(TfspeedError, match=r"within 2 s.*: nothing was heard of worker 1 \("):
        supervisor(tmp_path, body, join_s=2).run()
    assert gone(tmp_path)


def test_a_port_that_answers_for_another_program_is_not_taken_for_a_worker(tmp_path):
    """The one that is started here has not joined either, and is not to blame."""
    with socket.create_server(("127.0.0.1", 0)) as foreign, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ports = free.getsockname()[1], foreign.getsockname()[1]
        free.close()
        tried = supervisor(tmp_path, """
import socket
address = json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"][0]
server = socket.create_server((address.split(":")[0], int(address.split(":")[1])))
time.sleep(60)""", join_s=2)
        tried.indices = [0]
        tried.make = lambda: addresses.Cluster(tuple(f"127.0.0.1:{p}" for p in ports), 0)
        with pytest.raises(TfspeedError, match=r"nothing was heard of worker 1 \(.*no other prog"):
            tried.run()


def test_each_worker_has_its_share_of_the_cores(tmp_path):
    body = """
join()
(here / f"{index}.cores").write_text(json.dumps(sorted(os.sched_getaffinity(0))))"""
    assert supervisor(tmp_path, body).run() == 0
    shares = [json.loads((tmp_path / f"{i}.cores").read_text()) for i in (0, 1)]
    cores = sorted(os.sched_getaffinity(0))
    assert len(shares[0]) == len(shares[1]) == max(1, len(cores) // 2)
    if len(cores) > 1:
        assert not set(shares[0]) & set(shares[1])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_supervisor(tmp_path, how):
    """SIGINT comes while workers wait for others, and do not heed it."""
    code = (f"from pathlib import Path; from tests.cluster.test_supervisor import supervisor\n"
            f"folder = Path({str(tmp_path)!r})\n"
            "body = 'signal.signal(signal.SIGINT, signal.SIG_IGN)\\ntime.sleep(120)'\n"
            "print(supervisor(folder, body, join_s=100).run())")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len([p for p in tmp_path.glob("*.pid") if p.read_text()]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(how)
    process.wait(30)
    while not gone(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ports_are_held_to_one_address(tmp_path):
    """What listens everywhere by itself listens on loopback alone, over IPv6 sockets too."""
    body = """
join()
import socket
everywhere = socket.socket(socket.AF_INET6 if index else socket.AF_INET)
everywhere.bind(("::" if index else "0.0.0.0", 0))
(here / f"{index}.name").write_text(everywhere.getsockname()[0])"""
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    assert supervisor(tmp_path, body, bind="127.0.0.1").run() == 0
    assert [(tmp_path / f"{i}.name").read_text() for i in (0, 1)] == ["127.0.0.1",
                                                                     "::ffff:127.0.0.1"]


def test_without_a_compiler_the_user_must_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(TfspeedError, match=r"compiler.*--bind=0\.0\.0\.0"):
        binding.environment("127.0.0.1", tmp_path)
    assert binding.environment(binding.ANYWHERE, tmp_path) == {}
    with pytest.raises(TfspeedError, match="bind='everywhere'"):
        binding.check("everywhere")
