"""Measures our engines beside other runtimes, on the same weights and machine, in turn.

    python scripts/bench.py --peers=keras_hub                   xla beside KerasHub's generate()
    python scripts/bench.py --peers= --engines=graph,xla        our engines among themselves

A peer is installed into .peers/<name> the first time and runs as a process of its own.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("peers", "keras_hub", "runtimes to measure beside ours, joined by commas: "
                    "keras_hub")
flags.DEFINE_string("engines", "xla", "our engines, joined by commas: graph, xla")
flags.DEFINE_string("strategy", "baseline", "strategy of our rows: one, or several joined by '+'")
flags.DEFINE_string("model", "smollm2-135m", "as in scripts/run.py; peers take it in the layout "
                    "of a Hugging Face folder, so it must be of a family that has one")
flags.DEFINE_integer("prompt_tokens", 128, "length of the measured prompt")
flags.DEFINE_integer("new_tokens", 128, "tokens generated after it")
flags.DEFINE_integer("batch", 1, "prompts at once")
flags.DEFINE_integer("repetitions", 5, "timed generations of each")
flags.DEFINE_integer("threads", 0, "threads for each; 0: all cores")
flags.DEFINE_string("logdir", "logs", "where TensorBoard finds the runs")
flags.DEFINE_string("output", "results_bench.json", "where the rows are written")
flags.DEFINE_string("eval_text", None, "text file for prompts and quality; default: the project's "
                    "own public-domain text")


def run():
    from tfspeed import bench_job
    return bench_job.run(FLAGS)


if __name__ == "__main__":
    cli.define_strategy_options(sys.argv)
    cli.main(run, __doc__)
