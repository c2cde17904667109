"""What to run within a budget, by the cost models: the Pareto front, and the command of each point.

    python scripts/plan.py --tpot_ms=5 --max_perplexity_increase=0.01
    python scripts/plan.py --model=path/to/model.gguf --ttft_ms=200 --ram_gb=2 --workers=2
    python scripts/plan.py --results=results.json    quality as measured there, not the priors
    python scripts/plan.py --explain                 the formulas, their assumptions, a picture

No model is run: times come from this machine's calibration (scripts/calibrate.py) and how fast it
reads memory now, memory from the shapes, quality from measured rows, or else from priors of another
model, and the table says which. `scripts/run.py --strategy=auto` takes the best point and measures
it beside the baseline, and beside what these times cannot tell from it.

Exit codes: 0; 2 for a mistake in the flags, no calibration, or a budget that nothing keeps to.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "smollm2-135m", "a decoder, as scripts/run.py takes it")
flags.DEFINE_float("ttft_ms", None, "most milliseconds to the first token")
flags.DEFINE_float("tpot_ms", None, "most milliseconds for each token after it")
flags.DEFINE_float("max_perplexity_increase", None, "most that perplexity may rise, a fraction")
flags.DEFINE_float("ram_gb", None, "most memory of all processes, 10^9 bytes")
flags.DEFINE_integer("batch", 0, "texts at once; 0: 1 to 32 are searched")
flags.DEFINE_integer("prompt_tokens", 128, "tokens of each prompt (at most half of the context)")
flags.DEFINE_integer("new_tokens", 128, "tokens that are generated, of each text")
flags.DEFINE_integer("threads", 0, "threads; 0: 1 and all cores are searched")
flags.DEFINE_integer("workers", 1, "most processes that a batch is spread over")
flags.DEFINE_list("results", [], "files that scripts/run.py wrote, whose quality counts")
flags.DEFINE_string("output", "plan.json", "where the points are written")
flags.DEFINE_string("picture", "plan.png", "where the front (or, with --explain, the curves) is "
                    "drawn")
flags.DEFINE_bool("explain", False, "print the formulas and what they assume; draw them")


def run():
    from tfspeed import plan_job
    return plan_job.run(FLAGS)


if __name__ == "__main__":
    cli.main(run, __doc__)
