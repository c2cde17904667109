"""Draws speed over perplexity out of the rows of several runs, with the Pareto front.

    python scripts/run.py --strategy=quantize --engine=fused --output=a.json
    python scripts/run.py --strategy=low_rank --engine=litert --output=b.json
    python scripts/pareto.py --results=a.json,b.json --output=pareto.png

TensorBoard shows the picture among the images of --logdir.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli

FLAGS = flags.FLAGS
flags.DEFINE_list("results", None, "files that scripts/run.py wrote (--output), joined by commas")
flags.DEFINE_string("output", "pareto.png", "where the picture is written")
flags.DEFINE_string("title", "Speed over quality", "printed above it")
flags.DEFINE_string("logdir", "logs", "where TensorBoard finds it")


def run():
    from tfspeed import pareto_job
    return pareto_job.run(FLAGS)


if __name__ == "__main__":
    cli.main(run, __doc__)
