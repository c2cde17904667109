"""Continues text while it still arrives: a result for every line, revised as more comes in.

    some_program | python scripts/stream.py                          lines of a pipe
    python scripts/stream.py --source=file:notes.txt --new_tokens=8
    python scripts/stream.py --source=dir:inbox                      every file is a stream
    python scripts/stream.py --source=tcp:127.0.0.1:7000             every connection is one
    python scripts/stream.py --latest --json                         skips what is out of date

`~3` marks a stream's result number 3, `=3` its final one. A sender that is faster than the model
waits (`--queue` lines are held); with `--latest` the model skips to the newest text instead. What
was read of a stream stays in the KV cache. Exit codes: 0; 2 for a missing source or bytes that are
no text; 130 after Ctrl-C.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli

FLAGS = flags.FLAGS
cli.define_serving_flags()
flags.DEFINE_string("source", "stdin", "stdin, file:PATH, dir:PATH or tcp:HOST:PORT")
flags.DEFINE_integer("new_tokens", 16, "tokens of a result")
flags.DEFINE_integer("queue", 16, "lines that wait for the model, at most")
flags.DEFINE_bool("latest", False, "let a newer text of a stream replace one that still waits")
flags.DEFINE_float("idle_s", 0.0, "for dir and tcp: end when nothing came for so long; 0: never")
flags.DEFINE_bool("json", False, "print results as JSON lines")
flags.DEFINE_float("temperature", 0.0, "0 is greedy")
flags.DEFINE_integer("seed", 0, "the same seed gives the same results")


def run():
    from tfspeed.streams import job
    return job.run(FLAGS)


if __name__ == "__main__":
    cli.main(run, __doc__)
