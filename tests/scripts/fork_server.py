"""Imports TensorFlow once and forks for each call of a script that fork_client.py asks for.

    python fork_server.py SOCKET ROOT
"""

import contextlib
import gc
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys

POLL_S = 0.01


def next_call(listener) -> dict:
    """Forks for each client until stdin ends; returns in the forks, with what each is to run."""
    clients = {}  # a fork's process: the connection of its client
    while True:
        ready, _, _ = select.select([0, listener, *clients.values()], [], [],
                                    POLL_S if clients else None)
        if 0 in ready:
            for process in clients:
                os.kill(process, signal.SIGKILL)
            os._exit(0)
        if listener in ready:
            client, _ = listener.accept()
            size, streams, _, _ = socket.recv_fds(client, 8, 3)
            told = client.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
            process = os.fork()
            if not process:
                for connection in (listener, client, *clients.values()):
                    connection.close()
                return json.loads(told) | {"streams": streams}
            for stream in streams:
                os.close(stream)
            tell(client, process)
            clients[process] = client
        end(clients, ready)


def end(clients, ready) -> None:
    """Tells clients how their forks ended, and ends the forks of clients that were killed."""
    for process, client in list(clients.items()):
        if client in ready:
            os.kill(process, signal.SIGKILL)
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            if client not in ready:
                tell(client, os.waitstatus_to_exitcode(status))
            client.close()
            del clients[process]


def tell(client, number: int) -> None:
    with contextlib.suppress(OSError):  # it was killed just now, which `end` sees
        client.sendall(number.to_bytes(8, "big", signed=True))


def become(call: dict) -> None:
    """Gives this process what its client has."""
    for own, given in enumerate(call["streams"]):
        os.dup2(given, own)
        os.close(given)
    os.environ.clear()
    os.environ.update(call["environment"])
    os.chdir(call["cwd"])
    resource.setrlimit(resource.RLIMIT_FSIZE, call["file_size"])
    sys.argv = call["argv"]


if __name__ == "__main__":
    sys.path[0] = sys.argv[2]
    from tfspeed import cli
    cli.quiet_tensorflow()
    import keras  # noqa: F401

    from tfspeed import main_job  # noqa: F401
    gc.freeze()  # or each fork copies what a collection looks at
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen(64)
        print("ready", flush=True)
        become(next_call(listener))
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        code = ended.code
        if not isinstance(code, int):
            print(code or "", end="", file=sys.stderr, flush=True)
            code = 1 if code else 0
        os._exit(code)  # to take TensorFlow down takes a fifth of a second
