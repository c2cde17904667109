"""What more workers would bring, on paper: a table to 1,024 workers, beside its assumptions.

    python scripts/scaling.py                                  SmolLM2-135M, 10 Gbit/s Ethernet
    python scripts/scaling.py --link_us=3 --link_gb_per_s=50   a fast interconnect
    python scripts/scaling.py --model=path/to/model.gguf --batch=8

Three ways to use workers: tensor_parallel (one request, faster: each worker reads its part of the
weights, and two sums a layer are exchanged), data parallel decoding (more requests: whole models,
nothing exchanged but tokens), data parallel training (a sum of all gradients a step). Nothing is
run but, without --gb_per_s, a measurement of this machine's memory.

Exit codes: 0; 2 for a mistake in the flags.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "smollm2-135m", "a decoder, as scripts/run.py takes it")
flags.DEFINE_float("gb_per_s", 0.0, "10^9 bytes a second that a worker reads; 0: as this machine")
flags.DEFINE_float("gflops", 200.0, "10^9 operations a second of a worker, for training")
flags.DEFINE_float("link_us", 30.0, "latency of a message between workers, microseconds")
flags.DEFINE_float("link_gb_per_s", 1.25, "10^9 bytes a second between workers")
flags.DEFINE_integer("bytes_a_weight", 4, "4: float32, 2: bfloat16, 1: int8")
flags.DEFINE_integer("batch", 1, "rows of a decode step (on each worker where they are shared out)")
flags.DEFINE_integer("train_tokens", 1024, "tokens of a training step on each worker")
flags.DEFINE_string("output", None, "JSON file that the tables are written to as well")


def run():
    from tfspeed import scaling_job
    return scaling_job.run(FLAGS)


if __name__ == "__main__":
    cli.main(run, __doc__)
