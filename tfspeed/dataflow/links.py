"""Carries messages between stages: a queue inside a process, or a TCP connection between two.

A message is a header that JSON can hold, and arrays; nothing is unpickled. Queues are bounded: a
stage that is slower than the one before it holds that one up (with TCP, through its window).
A connection is neither authenticated nor encrypted beyond a token that all workers share over
TensorFlow's own connections, and says every few seconds that its process lives.
"""

import contextlib
import hmac
import json
import queue
import socket
import struct
import threading

import numpy as np
import tensorflow as tf

from tfspeed.cluster.member import WorkerLost

_BEAT_S, _SILENT_S = 5, 15  # twice in a row: a process that was halted is given a second chance
_HEAD = struct.Struct("!II")  # bytes of the header, number of arrays
_MOST_HEADER = 1 << 20
_BEAT = {"kind": "beat"}


class QueueLink:
    """Between two threads; both ends in one."""

    def __init__(self, depth: int):
        self._queue: queue.Queue = queue.Queue(depth)

    def put(self, header: dict, arrays=()) -> None:
        self._queue.put((header, list(arrays)))

    def get(self) -> tuple[dict, list[np.ndarray]]:
        return self._queue.get()

    @property
    def waits(self) -> bool:
        """Whether `get` would return at once."""
        return not self._queue.empty()


class Sender:
    """The end of a connection that messages are put into."""

    def __init__(self, connection: socket.socket):
        self._connection, self._lock = connection, threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._live, daemon=True).start()

    def put(self, header: dict, arrays=()) -> None:
        arrays = [np.ascontiguousarray(array) for array in arrays]
        described = [[str(a.dtype), list(a.shape)] for a in arrays]
        text = json.dumps([header, described]).encode()
        try:
            with self._lock:
                self._connection.sendall(_HEAD.pack(len(text), len(arrays)) + text)
                for array in arrays:
                    self._connection.sendall(array.reshape(-1).view(np.uint8))
        except OSError as error:
            raise _lost(error) from error

    def close(self) -> None:
        self._closed.set()
        self._connection.close()

    def _live(self) -> None:
        while not self._closed.wait(_BEAT_S):
            with contextlib.suppress(WorkerLost):
                self.put(_BEAT)


class Receiver:
    """The other end: a thread reads up to `depth` messages ahead."""

    def __init__(self, connection: socket.socket, depth: int):
        self._connection = connection
        self._queue: queue.Queue = queue.Queue(depth)
        connection.settimeout(_SILENT_S)
        threading.Thread(target=self._listen, daemon=True).start()

    def get(self) -> tuple[dict, list[np.ndarray]]:
        found = self._queue.get()
        if isinstance(found, Exception):
            self._queue.put(found)
            raise _lost(found) from found
        return found

    @property
    def waits(self) -> bool:
        """Whether `get` would return at once."""
        return not self._queue.empty()

    def close(self) -> None:
        self._connection.close()

    def _listen(self) -> None:
        try:
            while True:
                header, arrays = self._message()
                if header != _BEAT:
                    self._queue.put((header, arrays))
        except Exception as error:  # whatever it is, nobody may wait for a thread that is gone
            self._queue.put(error)

    def _message(self):
        size, count = _HEAD.unpack(self._exactly(_HEAD.size))
        if size > _MOST_HEADER:
            raise ValueError("This is no message of a stage.")
        header, described = json.loads(bytes(self._exactly(size)))
        arrays = []
        for dtype, shape in described[:count]:
            made = np.empty(shape, tf.as_dtype(dtype).as_numpy_dtype)
            self._into(memoryview(made.reshape(-1).view(np.uint8)))
            arrays.append(made)
        return header, arrays

    def _exactly(self, size: int) -> bytearray:
        made = bytearray(size)
        self._into(memoryview(made))
        return made

    def _into(self, view: memoryview) -> None:
        silent = False
        while len(view):
            try:
                count = self._connection.recv_into(view)
            except TimeoutError:
                if silent:
                    raise
                silent = True
                continue
            if not count:
                raise ConnectionError("The connection was closed.")
            view, silent = view[count:], False


def _lost(error: Exception) -> WorkerLost:
    return WorkerLost("A stage of the pipeline is gone, or does not answer: this worker stops.",
                      cause=str(error)[:200])


def listen(host: str) -> socket.socket:
    """A port of this machine that the stage before may connect to."""
    return socket.create_server((host, 0), backlog=4)


def connect(address: str, token: str, timeout: float = 60) -> socket.socket:
    """A connection to the stage after, `host:port`."""
    host, _, port = address.rpartition(":")
    made = socket.create_connection((host, int(port)), timeout=timeout)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.settimeout(None)
    made.sendall(token.encode())
    return made


def accept(listening: socket.socket, token: str, timeout: float = 60) -> socket.socket:
    """The first connection that knows the token."""
    listening.settimeout(timeout)
    with listening:
        while True:
            made, _ = listening.accept()
            made.settimeout(timeout)
            with contextlib.suppress(OSError):
                if hmac.compare_digest(made.recv(len(token), socket.MSG_WAITALL), token.encode()):
                    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    return made
            made.close()
