"""Real pipes, files, folders and sockets; no model."""

import contextlib
import os
import socket
import threading
import time

import pytest

from tfspeed.errors import TfspeedError
from tfspeed.streams import sources
from tfspeed.streams.inbox import Event, Inbox, dataset, events


@pytest.fixture
def inbox():
    made = Inbox()
    yield made
    made.close()


def collected(inbox):
    return list(events(dataset(inbox)))


def read_pipe(inbox, data):
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    sources._run(inbox, "pipe", sources._read, reading, "pipe", True)
    return collected(inbox)


def test_lines_of_a_pipe_come_with_all_before_them(inbox):
    assert read_pipe(inbox, "one\ntwo ä\r\nthree".encode()) == [
        Event("pipe", "one\n"), Event("pipe", "one\ntwo ä\n"),
        Event("pipe", "one\ntwo ä\nthree"), Event("pipe", "one\ntwo ä\nthree", end=True)]


@pytest.mark.parametrize(("data", "error"), [
    (b"fine\n\xff\xfe broken\nlost\n", "line 2 is no UTF-8 text"),
    (b"x" * (sources.LONGEST + 5), "line 1 is longer than")])
def test_bytes_that_are_no_text_end_the_stream(inbox, tmp_path, data, error):
    (tmp_path / "data").write_bytes(data)
    sources.start(f"file:{tmp_path / 'data'}", inbox)
    last = collected(inbox)[-1]
    assert last.end
    assert error in last.error


def test_an_empty_file_is_an_empty_stream(inbox, tmp_path):
    (tmp_path / "empty").touch()
    sources.start(f"file:{tmp_path / 'empty'}", inbox)
    assert collected(inbox) == [Event(str(tmp_path / "empty"), "", end=True)]


@pytest.mark.parametrize("source", [
    "file:/nowhere/at/all", "file:", "dir:/nowhere", "dir:/etc/hostname", "tcp:nohost", "tcp::",
    "tcp:127.0.0.1:99999", "tcp:256.1.1.1:80", "udp:1", "stdin:x", "", "file:a\0b"])
def test_what_is_no_source_is_told(inbox, source):
    with pytest.raises(TfspeedError, match="--source"):
        sources.start(source, inbox)


def test_a_folder_is_not_a_file(inbox, tmp_path):
    with pytest.raises(TfspeedError, match=r"directory"):
        sources.start(f"file:{tmp_path}", inbox)


def test_files_of_a_folder_grow_and_go(inbox, tmp_path):
    (tmp_path / "old").write_text("first\n")
    sources.start(f"dir:{tmp_path}", inbox)
    found = events(dataset(inbox))
    assert next(found) == Event("old", "first\n")
    with (tmp_path / "old").open("a") as file:
        file.write("sec")
    (tmp_path / "new").write_text("hello\n")
    assert next(found) == Event("new", "hello\n")  # "sec" is no whole line
    with (tmp_path / "old").open("a") as file:
        file.write("ond\n")
    assert next(found) == Event("old", "first\nsecond\n")
    (tmp_path / "new").unlink()
    assert next(found) == Event("new", "hello\n", end=True)
    inbox.close()
    assert list(found) == []


def test_a_folder_that_is_idle_ends(inbox, tmp_path):
    (tmp_path / "a").write_text("no line break")
    sources.start(f"dir:{tmp_path}", inbox, idle_s=0.3)
    assert collected(inbox) == [Event("a", "no line break"), Event("a", "no line break", end=True)]


def test_connections_are_streams_and_a_bad_one_ends_alone(inbox, monkeypatch):
    accept, gone = socket.socket.accept, [ConnectionAbortedError()]  # a caller that hung up first

    def accepting(listening):
        if gone:
            raise gone.pop()
        return accept(listening)

    monkeypatch.setattr(socket.socket, "accept", accepting)
    words = sources.start("tcp:127.0.0.1:0", inbox, idle_s=0.5)
    address = "127.0.0.1", int(words.rpartition(":")[2])
    found = events(dataset(inbox))
    with socket.create_connection(address) as good, socket.create_connection(address) as bad:
        good.sendall(b"one\n")
        assert next(found).text == "one\n"
        bad.sendall(b"\xff\n")
        failed = next(found)
        assert "no UTF-8" in failed.error
        assert failed.stream != "connection 1" or failed.text == ""
        good.sendall(b"two\n")
        assert next(found).text == "one\ntwo\n"
    assert next(found) == Event("connection 1", "one\ntwo\n", end=True)
    assert list(found) == []  # idle: the source has ended


def test_a_fast_sender_waits():
    inbox = Inbox(capacity=2)
    reading, writing = os.pipe()
    sources._run(inbox, "pipe", sources._read, reading, "pipe", True)
    written = []

    def write():
        with contextlib.suppress(BrokenPipeError):  # in the end nobody reads
            for _ in range(2000):
                written.append(os.write(writing, b"x" * 999 + b"\n"))
        os.close(writing)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    time.sleep(0.7)
    assert len(written) < 200  # a pipe's 64 kB, a piece, and what is in the inbox
    found = iter(inbox)
    for _ in range(20):
        next(found)
    inbox.close()  # nobody looks any more: the reader lets go of the pipe
    assert list(found) == []


def test_a_dropped_stream_is_told_to_its_sender_once():
    inbox = Inbox(1)
    assert inbox.put(Event("a", "1"))
    inbox.drop("a")
    lines = sources.Lines(inbox, "a")
    assert not lines.push(b"2\n")
    lines.end()  # says nothing any more
    assert inbox.put(Event("a", "of a new file of that name", end=True))
    inbox.drop("a")  # its end was there: nobody is left to be told
    assert inbox.put(Event("a", "again"))


def test_the_latest_takes_the_place_of_what_waits():
    inbox = Inbox(capacity=2, latest=True)
    for i in range(50):
        assert inbox.put(Event("a", str(i)))
    inbox.put(Event("b", "x"))
    inbox.end()
    assert [event.text for event in inbox] == ["49", "x"]


def test_a_silent_inbox_gives_empty_events_and_ends_when_closed():
    inbox = Inbox()
    found = iter(inbox)
    assert next(found) == Event()
    inbox.close()
    assert list(found) == []
    assert not inbox.put(Event("late"))
