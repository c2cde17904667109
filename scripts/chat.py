"""Talks with a model in the terminal; answers are streamed, what was said is not read again.

    python scripts/chat.py                                  SmolLM2-135M, its own words
    python scripts/chat.py --engine=xla --temperature=0     without a C compiler, greedy
    echo "What is the capital of France?" | python scripts/chat.py --temperature=0

Ctrl-C ends an answer, Ctrl-D the chat.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli

FLAGS = flags.FLAGS
cli.define_serving_flags()
flags.DEFINE_string("system", "", "what the model is told first")
flags.DEFINE_integer("max_new_tokens", 512, "tokens of an answer, at most")
flags.DEFINE_float("temperature", 0.7, "0 is greedy")
flags.DEFINE_integer("top_k", 0, "sample among the k likeliest tokens; 0: all")
flags.DEFINE_float("top_p", 0.95, "sample among the likeliest tokens that make up p")
flags.DEFINE_integer("seed", 0, "the same seed gives the same answers")


def run():
    from tfspeed.serving import chat
    return chat.run(FLAGS)


if __name__ == "__main__":
    cli.main(run, __doc__)
