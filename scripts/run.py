"""Loads a language model, applies a strategy, measures it beside the untouched model, reports.

    python scripts/run.py --strategy=mirrored                     the default model, measured
    python scripts/run.py --strategy=baseline --engine=graph      without XLA
    python scripts/run.py --engine=litert:int8                    LiteRT, weights in eight bits
    python scripts/run.py --engine=fused:int8                     one operator, compiled here
    python scripts/run.py --engine=litert:int8 --profile          where a step's time goes
    python scripts/run.py --strategy=low_rank+distill --every_step      a row for each of the two
    python scripts/run.py --strategy=mirrored --batch=8           eight requests at once
    python scripts/run.py --strategy=baseline --prompt="Hello"    answers as well, streamed
    python scripts/run.py --strategy=multi_worker --workers=2 --batch=16    two processes
    python scripts/run.py --prompts=FILE --answers=FILE --batch=8  answers a file of prompts
    python scripts/run.py --strategy=auto                         what the planner finds best
    python scripts/run.py --strategy=list                         every strategy in one line
    tensorboard --logdir logs                                     looks at the runs

Exit codes: 0; 2 for a mistake in the flags or files; 3 if a row's perplexity rose by more than its
gate allows (--max_perplexity_increase), all rows are written nevertheless; 130 after Ctrl-C.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli, run_flags

FLAGS = flags.FLAGS
run_flags.define()


def run():
    from tfspeed import main_job
    return main_job.run(FLAGS)


if __name__ == "__main__":
    cli.main(run, __doc__)
