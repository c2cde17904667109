"""Where lines come from: standard input, a file, the files of a folder, connections."""

import contextlib
import os
import select
import socket
import sys
import threading
import time
from pathlib import Path

from tfspeed.errors import TfspeedError
from tfspeed.streams.inbox import Event, Inbox

LONGEST = 1 << 16   # bytes of a line
_PIECE = 1 << 14
_LOOK_S = 0.1       # how often a folder is looked at, and whether somebody still listens
_CONNECTIONS = 64


class Lines:
    """A stream's bytes as lines; an `Event` for each that is whole."""

    def __init__(self, inbox: Inbox, stream: str):
        self._inbox, self._stream = inbox, stream
        self._rest, self._text, self._count = b"", "", 0
        self.open = True

    def push(self, piece: bytes) -> bool:
        """Takes bytes as they come; False where no more are wanted."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            if not self._line(line + b"\n"):
                return False
        if len(self._rest) > LONGEST:
            return self._fail(f"line {self._count + 1} is longer than {LONGEST} bytes")
        return True

    def end(self) -> None:
        """Tells that the stream has ended, its last line with or without a line break."""
        if self.open and (not self._rest or self._line(self._rest)):
            self.open = False
            self._inbox.put(Event(self._stream, self._text, end=True))

    def _line(self, line: bytes) -> bool:
        self._count += 1
        if len(line) > LONGEST:
            return self._fail(f"line {self._count} is longer than {LONGEST} bytes")
        try:
            self._text += line.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            return self._fail(f"line {self._count} is no UTF-8 text ({error.reason})")
        self.open = self._inbox.put(Event(self._stream, self._text))
        return self.open

    def _fail(self, error: str) -> bool:
        self.open = False
        self._inbox.put(Event(self._stream, self._text, end=True, error=error))
        return False


def start(source: str, inbox: Inbox, idle_s: float = 0.0) -> str:
    """Lets a thread read a source into an inbox until it ends, or the inbox is closed.

    Args:
        source: `stdin`, `file:PATH`, `dir:PATH` or `tcp:HOST:PORT` (port 0: any).
        idle_s: for `dir` and `tcp`: they end when nothing has come for so long; 0: never.

    Returns:
        What is read, in words.
    """
    kind, _, where = source.partition(":")
    if kind == "stdin" and not where:
        return _run(inbox, "standard input", _read, sys.stdin.fileno(), "stdin", False)
    if kind == "file" and where:
        try:
            handle = os.open(where, os.O_RDONLY)
            os.read(handle, 0)  # a folder is told now
        except (OSError, ValueError) as error:
            raise TfspeedError("--source must be a file that can be read.", path=where,
                               cause=getattr(error, "strerror", None) or str(error)) from error
        return _run(inbox, where, _read, handle, where, True)
    if kind == "dir" and where:
        if not Path(where).is_dir():
            raise TfspeedError("--source must be a folder that can be read.", path=where)
        return _run(inbox, f"the files of {where}", _watch, Path(where), idle_s)
    if kind == "tcp" and where:
        listening = _listen(where)
        host, port = listening.getsockname()[:2]
        return _run(inbox, f"connections to {host}:{port}", _serve, listening, idle_s)
    raise TfspeedError("--source must be stdin, file:PATH, dir:PATH or tcp:HOST:PORT.",
                       source=source)


def _run(inbox: Inbox, words: str, read, *args) -> str:
    def run():
        try:
            read(inbox, *args)
        except Exception as error:  # a reader that dies must not leave the receiver waiting
            inbox.put(Event(words, end=True, error=str(error)))
        finally:
            inbox.end()

    threading.Thread(target=run, name="tfspeed-source", daemon=True).start()
    return words


def _read(inbox: Inbox, handle: int, stream: str, owned: bool) -> None:
    """Reads a descriptor until its end; whoever writes into a pipe waits for the inbox."""
    lines = Lines(inbox, stream)
    try:
        while not inbox.closed:
            if not select.select([handle], [], [], _LOOK_S)[0]:
                continue
            piece = os.read(handle, _PIECE)
            if not piece:
                lines.end()
                return
            if not lines.push(piece):
                return
    finally:
        if owned:
            os.close(handle)


def _watch(inbox: Inbox, folder: Path, idle_s: float) -> None:
    """Every file of a folder is a stream, which grows with it; it ends when the file goes, or with
    all others when nothing has come for `idle_s`."""
    known: dict[str, tuple[Lines, int]] = {}
    last = time.monotonic()
    while not inbox.closed and not (idle_s and time.monotonic() - last > idle_s):
        found = {path.name: path for path in sorted(folder.iterdir())
                 if path.is_file() and not path.name.startswith(".")}
        for name, path in found.items():
            lines, read = known.get(name) or (Lines(inbox, name), 0)
            try:
                with path.open("rb") as file:
                    file.seek(read)
                    piece = file.read(_PIECE)
            except OSError:  # gone since, or not ours to read
                continue
            known[name] = lines, read + len(piece)
            if piece and lines.open:
                lines.push(piece)
                last = time.monotonic()
        for name in known.keys() - found.keys():
            known.pop(name)[0].end()
        time.sleep(_LOOK_S)
    for lines, _ in known.values():
        lines.end()


def _listen(where: str) -> socket.socket:
    host, _, port = where.rpartition(":")
    try:
        return socket.create_server((host.strip("[]"), int(port)), backlog=_CONNECTIONS,
                                    family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, ValueError, OverflowError) as error:
        raise TfspeedError("--source=tcp:HOST:PORT must be an address to listen on.",
                           address=where, cause=str(error)) from error


def _serve(inbox: Inbox, listening: socket.socket, idle_s: float) -> None:
    """Every connection is a stream; what is wrong with one ends that one."""
    streams: dict[socket.socket, Lines] = {}
    last, count = time.monotonic(), 0
    listening.setblocking(False)
    try:
        while not inbox.closed and not (idle_s and not streams
                                        and time.monotonic() - last > idle_s):
            wanted = [*streams, *([listening] if len(streams) < _CONNECTIONS else [])]
            for ready in select.select(wanted, [], [], _LOOK_S)[0]:
                last = time.monotonic()
                if ready is listening:
                    with contextlib.suppress(OSError):  # who called has gone again
                        connection = ready.accept()[0]
                        count += 1
                        streams[connection] = Lines(inbox, f"connection {count}")
                    continue
                try:
                    piece = ready.recv(_PIECE)
                except OSError:  # reset by who sent: what has come counts
                    piece = b""
                if not piece:
                    streams[ready].end()
                if not piece or not streams[ready].push(piece):
                    streams.pop(ready)
                    ready.close()
    finally:
        for connection in (*streams, listening):
            connection.close()
