"""Loads a language model, applies a strategy, measures it beside the untouched model, reports.

    python scripts/run.py --strategy=mirrored                     the default model, measured
    python scripts/run.py --strategy=baseline --engine=graph      without XLA
    python scripts/run.py --strategy=mirrored --batch=8           eight requests at once
    python scripts/run.py --strategy=baseline --prompt="Hello"    answers as well, streamed
    python scripts/run.py --strategy=list                         every strategy in one line
    tensorboard --logdir logs                                     looks at the runs
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("strategy", "baseline", "one strategy, several joined by '+' (applied from "
                    "left to right), or 'list' to describe them all")
flags.DEFINE_string("engine", "xla", "how a step is executed: graph or xla")
flags.DEFINE_string("model", "smollm2-135m", "smollm2-135m, gemma3-270m, glassllm; or a path "
                    "(.gguf, .keras, Hugging Face folder), or a KerasHub preset")
flags.DEFINE_string("dtype", "float32", "type of the weights: float32, bfloat16 or float16; the "
                    "baseline row is float32 always")
flags.DEFINE_integer("prompt_tokens", 128, "length of the measured prompt")
flags.DEFINE_integer("new_tokens", 128, "tokens generated after it")
flags.DEFINE_integer("batch", 1, "prompts at once")
flags.DEFINE_integer("repetitions", 5, "timed generations of each model")
flags.DEFINE_integer("threads", 0, "threads an operator may use; 0: all cores")
flags.DEFINE_string("prompt", None, "text to answer: printed as it is generated")
flags.DEFINE_float("temperature", 0.0, "for --prompt: 0 is greedy")
flags.DEFINE_integer("top_k", 0, "for --prompt: sample among the k likeliest tokens; 0: all")
flags.DEFINE_float("top_p", 1.0, "for --prompt: sample among the likeliest tokens that make up p")
flags.DEFINE_integer("seed", 0, "for --prompt: the same seed gives the same text")
flags.DEFINE_string("logdir", "logs", "where TensorBoard finds the runs")
flags.DEFINE_string("output", "results.json", "where the rows are written")
flags.DEFINE_string("eval_text", None, "text file for prompts and quality; default: the project's "
                    "own public-domain text")


def run():
    from tfspeed import main_job
    return main_job.run(FLAGS)


if __name__ == "__main__":
    cli.define_strategy_options(sys.argv)
    cli.main(run, __doc__)
