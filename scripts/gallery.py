"""Draws every picture of README and BUILD anew from the JSON files in scripts/gallery.

    python scripts/gallery.py                                   what `make gallery` does
    python scripts/gallery.py --take=pareto=results.json        takes over new figures first
    python scripts/gallery.py --take=pareto=a.json+b.json,evolution=results_evolution.json

NAME.json gives NAME-light.svg and NAME-dark.svg: pareto and roofline of rows of run.py or bench.py,
scaling of scaling.py, goodput of bench_serve.py, evolution of evolution.py, predictions of rows
with `predicted`. --take leaves out samples, which no picture shows, so that files stay small.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("folder", str(Path(__file__).parent / "gallery"), "where JSON and pictures are")
flags.DEFINE_list("take", None, "NAME=FILE, several joined by commas: results to take over")


def run():
    from tfspeed import gallery_job
    return gallery_job.run(FLAGS)


if __name__ == "__main__":
    cli.main(run, __doc__)
