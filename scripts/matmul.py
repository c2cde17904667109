"""Splits one product of two matrices over the devices of this machine: the smallest example.

    python scripts/matmul.py                         1000 x 1000, a part on each core (or GPU)
    python scripts/matmul.py --split=columns         some columns of B on each, all of A
    python scripts/matmul.py --split=inner           parts of full size, which are added up
    python scripts/matmul.py --size=4000 --devices=2

Split, assign, run at once, gather: with `--split=rows` each device gets some rows of A and all of
B, makes those rows of the product, and the rows are put together. The result is checked against one
device's and timed beside it, in turn. What to expect: one device's time divided by the devices that
compute at once, and the time of the exchange, from the latency and the bandwidth between devices as
they are measured here. A large product pays (work grows with size^3, the exchange with size^2), a
small one does not: try --size=100.

On a CPU the devices are logical ones, a core each, and the one device is held to one core while it
is timed. With --cores_for_baseline=0 it has all, what the devices have together, and nothing can be
gained.

Exit codes: 0; 1 if the products differ; 2 for a mistake in the flags.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli

FLAGS = flags.FLAGS
flags.DEFINE_integer("size", 1000, "rows and columns of both matrices")
flags.DEFINE_string("split", "rows", "what is split: rows (of A), columns (of B), or inner (A's "
                    "columns with B's rows)")
flags.DEFINE_integer("devices", 0, "how many; 0: every GPU, or a logical device for each core")
flags.DEFINE_integer("cores_for_baseline", 1, "cores that the one device is timed on; 0: all")
flags.DEFINE_integer("repetitions", 30, "timed products of each")


def run():
    from tfspeed import matmul_job
    return matmul_job.run(FLAGS)


if __name__ == "__main__":
    cli.main(run, __doc__)
