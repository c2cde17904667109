"""What travels between stages, and what does not."""

import json
import socket
import struct
import threading

import numpy as np
import pytest

from tfspeed.cluster.member import WorkerLost
from tfspeed.dataflow import links, ring

TOKEN = "a token of sixteen"


@pytest.fixture
def ends():
    """A sender, and the receiver behind it, which reads one message ahead."""
    listening = links.listen("127.0.0.1")
    address = f"127.0.0.1:{listening.getsockname()[1]}"
    sender = links.Sender(links.connect(address, TOKEN))
    receiver = links.Receiver(links.accept(listening, TOKEN, 5), 1)
    yield sender, receiver
    sender.close()
    receiver.close()


def test_messages_arrive_as_they_were(ends):
    sender, receiver = ends
    import ml_dtypes
    arrays = [np.arange(6, dtype=np.int32).reshape(2, 3), np.zeros((0, 4), np.float32),
              np.float32([[1.5]]), np.ones((2, 2), ml_dtypes.bfloat16),
              np.arange(12.0).reshape(3, 4).T]
    sender.put({"kind": "step", "text": "ä"}, arrays)
    sender.put({"kind": "end"})
    header, got = receiver.get()
    assert header == {"kind": "step", "text": "ä"}
    for array, other in zip(arrays, got, strict=True):
        assert array.dtype == other.dtype
        np.testing.assert_array_equal(array, other)
    assert receiver.get() == ({"kind": "end"}, [])


def test_a_slow_reader_holds_up_the_writer(ends):
    sender, receiver = ends
    sent = []

    def write():
        for i in range(40):
            sender.put({"i": i}, [np.zeros(1 << 20, np.uint8)])
            sent.append(i)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(1)
    assert len(sent) < 40  # what neither queue nor sockets hold waits
    for i in range(40):
        assert receiver.get()[0] == {"i": i}
    thread.join(10)
    assert len(sent) == 40


def test_a_closed_connection_is_a_lost_worker(ends):
    sender, receiver = ends
    sender.close()
    for _ in range(2):
        with pytest.raises(WorkerLost, match="gone"):
            receiver.get()
    with pytest.raises(WorkerLost, match="gone"):
        sender.put({"kind": "step"})


@pytest.mark.parametrize("bad", [
    struct.pack("!II", 1 << 30, 0), struct.pack("!II", 4, 0) + b"nope",
    struct.pack("!II", 40, 1) + json.dumps([{}, [["float128x", [2]]]]).encode().ljust(40)])
def test_what_is_no_message_is_refused(bad):
    one, other = socket.socketpair()
    receiver = links.Receiver(other, 1)
    one.sendall(bad)
    with pytest.raises(WorkerLost):
        receiver.get()
    one.close()
    receiver.close()


def test_a_stranger_is_not_let_in():
    listening = links.listen("127.0.0.1")
    port = listening.getsockname()[1]
    stranger = socket.create_connection(("127.0.0.1", port))
    stranger.sendall(b"x" * len(TOKEN))
    sender = links.Sender(links.connect(f"127.0.0.1:{port}", TOKEN))
    receiver = links.Receiver(links.accept(listening, TOKEN, 5), 1)
    sender.put({"kind": "end"})
    assert receiver.get()[0] == {"kind": "end"}
    assert stranger.recv(1) == b""
    for end in (sender, receiver, stranger):
        end.close()


def test_nobody_comes():
    with pytest.raises(TimeoutError):
        links.accept(links.listen("127.0.0.1"), TOKEN, 0.1)


def test_threads_pass_a_message_round():
    team = ring.Threads(3, depth=2)

    class Adds:
        def __call__(self, header, arrays):
            return header, [arrays[0] + 1]

        def forget(self):
            pass

    for _ in range(2):
        team.start([None, Adds(), Adds()])
        team.outbox.put({"kind": "step"}, [np.zeros(2)])
        np.testing.assert_array_equal(team.inbox.get()[1][0], [2, 2])
        team.outbox.put({"kind": ring.END})
        assert team.inbox.get()[0]["kind"] == ring.END
        team.ended()
