import errno
import json

import pytest

from tfspeed.errors import TfspeedError
from tfspeed.journal import Journal


def answers(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_was_finished_stays_and_half_a_line_goes(tmp_path):
    path = tmp_path / "answers.jsonl"
    journal = Journal(path, "job")
    journal.add({"index": 2, "answer": "c"})
    journal.add({"index": 0, "answer": "ä"})
    with journal.path.open("ab") as file:
        file.write(b'{"index": 1, "ans')  # the process died here
    again = Journal(path, "job")
    assert sorted(again.answers) == [0, 2]
    again.add({"index": 1, "answer": "b"})
    assert not path.exists()
    again.finish()
    assert [line["answer"] for line in answers(path)] == ["ä", "b", "c"]
    assert [file.name for file in tmp_path.iterdir()] == ["answers.jsonl"]


def test_another_job_and_a_damaged_file_are_refused(tmp_path):
    path = tmp_path / "answers.jsonl"
    Journal(path, "job").add({"index": 0, "answer": "a"})
    with pytest.raises(TfspeedError, match="other prompts"):
        Journal(path, "other job")
    path.with_name("answers.jsonl.journal").write_text("[]\nnot json\n")
    with pytest.raises(TfspeedError, match="could not be read"):
        Journal(path, "job")
    with pytest.raises(TfspeedError, match="cannot be written"):
        Journal(tmp_path / "nowhere" / "answers.jsonl", "job")


def test_a_full_disk_is_told_and_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    journal = Journal(path, "job")
    journal.add({"index": 0, "answer": "a"})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(TfspeedError, match="No space left"):
            journal.add({"index": 1, "answer": "b"})
        patch.setattr("pathlib.Path.write_text", full)
        with pytest.raises(TfspeedError, match="No space left"):
            journal.finish()
    assert Journal(path, "job").answers[0]["answer"] == "a"
