"""Stands for a process that the server of forked.py forks: it gives it its streams, environment,
folder and limit, hands signals on, and ends as it ends.

    python -IS fork_client.py SOCKET SCRIPT ARGUMENTS...
"""

import json
import os
import resource
import signal
import socket
import sys

SIGNALS = (signal.SIGINT, signal.SIGTERM)
signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until there is somebody to hand them to
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
told = json.dumps({"argv": sys.argv[2:], "environment": dict(os.environ), "cwd": os.getcwd(),
                   "file_size": resource.getrlimit(resource.RLIMIT_FSIZE)}).encode()
socket.send_fds(connection, [len(told).to_bytes(8, "big")], [0, 1, 2])
connection.sendall(told)


def answer() -> int:
    number = connection.recv(8, socket.MSG_WAITALL)
    if len(number) < 8:
        os._exit(70)  # the server is gone
    return int.from_bytes(number, "big", signed=True)


forked = answer()
for descriptor in 0, 1, 2:  # or who reads them waits for this process too
    os.close(descriptor)
for number in SIGNALS:
    signal.signal(number, lambda number, _: os.kill(forked, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
code = answer()
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
