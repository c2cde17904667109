"""What a message between two processes of this machine takes: the link of the alpha-beta model."""

import socket
import statistics
import subprocess
import sys
import time

from tfspeed.costs.communication import Link, fit
from tfspeed.errors import TfspeedError

SIZES = 1, 4 << 10, 64 << 10, 1 << 20, 8 << 20  # bytes
_TIMES, _TRIES, _SILENT_S = 15, 5, 20
_ECHO = """
import socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
peer, _ = server.accept()
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while head := peer.recv(8, socket.MSG_WAITALL):
    left = int.from_bytes(head, "big")
    while left:
        left -= len(peer.recv(min(left, 1 << 20)))
    peer.sendall(b"!")
"""


def measure() -> Link:
    """From messages of several sizes over TCP on 127.0.0.1, each answered with a byte; a message
    takes what is left of the time after half of the shortest exchange."""
    process = subprocess.Popen([sys.executable, "-c", _ECHO], stdout=subprocess.PIPE, text=True)
    try:
        port = int(process.stdout.readline() or 0)
        with socket.create_connection(("127.0.0.1", port), _SILENT_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return _link(connection)
    except OSError as error:
        raise TfspeedError("Messages on loopback could not be timed.",
                           cause=str(error)) from error
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _link(connection: socket.socket) -> Link:
    """The first of a few that makes sense: a busy machine may answer a long message sooner."""
    for left in reversed(range(_TRIES)):
        exchanges = [_exchange(connection, size) for size in SIZES]
        answer = exchanges[0] / 2
        try:
            found = fit(list(SIZES), [seconds - answer for seconds in exchanges])
        except TfspeedError:
            if not left:
                raise
        else:
            if found.alpha_s > 0:
                return found
    raise TfspeedError("Messages on loopback take no time: these times were disturbed.",
                       seconds=exchanges, hint="Measure again.")


def _exchange(connection: socket.socket, size: int) -> float:
    message, spent = size.to_bytes(8, "big") + bytes(size), []
    for _ in range(_TIMES):
        start = time.perf_counter()
        connection.sendall(message)
        if not connection.recv(1):
            raise ConnectionError("the other process has ended")
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)
