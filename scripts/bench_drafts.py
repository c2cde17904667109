"""Times drafts (--strategy=speculative) beside plain generation, on answers that copy and others.

    python scripts/bench_drafts.py                                     prompt lookup, fused:int8
    python scripts/bench_drafts.py --engine=xla --new_tokens=64
    python scripts/bench_drafts.py --engine=fused --speculative_draft=low_bit

Each prompt runs with drafts and without, in turn, with the same weights; TPOT, its ratio with a
95 % interval, drafted tokens that were right, tokens a pass, and whether the tokens are the same.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli

FLAGS = flags.FLAGS
cli.define_model_flags()
flags.DEFINE_string("engine", "fused:int8", "how a step is executed: fused, fused:int8, xla, graph")
flags.DEFINE_integer("threads", 0, "threads an operator may use; 0: all cores")
flags.DEFINE_integer("new_tokens", 128, "tokens of an answer, which the model may end before")
flags.DEFINE_integer("repetitions", 5, "timed generations of each prompt, after a warm-up")
flags.DEFINE_string("prompts", None, "JSON file of {group: [prompt, …]}; default: the project's")
flags.DEFINE_string("output", "drafts.json", "where the rows are written")


def run():
    from tfspeed.speculation import bench_job
    bench_job.run(FLAGS)


if __name__ == "__main__":
    if not any(arg.lstrip("-").startswith("strategy") for arg in sys.argv[1:]):
        sys.argv.append("--strategy=speculative")
    cli.main(run, __doc__)
