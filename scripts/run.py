"""Loads a language model, applies a strategy, measures it beside the untouched model, reports.

    python scripts/run.py --strategy=mirrored                     the default model, measured
    python scripts/run.py --strategy=baseline --engine=graph      without XLA
    python scripts/run.py --engine=litert:int8                    LiteRT, weights in eight bits
    python scripts/run.py --engine=fused:int8                     one operator, compiled here
    python scripts/run.py --engine=litert:int8 --profile          where a step's time goes
    python scripts/run.py --strategy=mirrored --batch=8           eight requests at once
    python scripts/run.py --strategy=baseline --prompt="Hello"    answers as well, streamed
    python scripts/run.py --strategy=list                         every strategy in one line
    tensorboard --logdir logs                                     looks at the runs

Exit codes: 0; 2 for a mistake in the flags or files; 3 if a row's perplexity rose by more than its
gate allows (--max_perplexity_increase), all rows are written nevertheless; 130 after Ctrl-C.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli

FLAGS = flags.FLAGS
cli.define_common_flags(output="results.json")
flags.DEFINE_string("engine", "xla", "how a step is executed: graph, xla, litert (float32 "
                    "weights), litert:int8, litert:int4, litert:float16, or "
                    "litert:int4,PATTERN=FORMAT…; fused, fused:int8, …: the same formats, faster, "
                    "with a C compiler")
flags.DEFINE_string("dtype", "float32", "type of the weights: float32, bfloat16 or float16; the "
                    "baseline row is float32 always")
flags.DEFINE_bool("profile", False, "time the operators of a decode step as well; for engines "
                  "that can: litert, fused")
flags.DEFINE_integer("cores_for_baseline", 0, "cores that the baseline is timed on; 0: all. "
                     "With 1, two replicas on two cores are compared with one device on one core")
flags.DEFINE_string("prompt", None, "text to answer: printed as it is generated")
flags.DEFINE_float("temperature", 0.0, "for --prompt: 0 is greedy")
flags.DEFINE_integer("top_k", 0, "for --prompt: sample among the k likeliest tokens; 0: all")
flags.DEFINE_float("top_p", 1.0, "for --prompt: sample among the likeliest tokens that make up p")
flags.DEFINE_integer("seed", 0, "for --prompt: the same seed gives the same text")


def run():
    from tfspeed import main_job
    return main_job.run(FLAGS)


if __name__ == "__main__":
    cli.main(run, __doc__)
