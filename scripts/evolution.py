"""From RNN to Transformer, measured: language models of equal size, the same text, the same budget.

    python scripts/evolution.py                              20 seconds of training each
    python scripts/evolution.py --seconds=0 --tokens=500000  the same number of tokens each instead
    python scripts/evolution.py --models=gru,transformer --contexts=64,8192 --engine=xla
    python scripts/evolution.py --text=book.txt --eval_text=other.txt --parameters=4000000

RNN, LSTM, GRU and Transformer over bytes, their counts of weights within 2 % of one another:
tokens/s of training over the length of a window, of decoding and of reading a prompt over the
context, and the perplexity that the budget reached on a text none was trained on. Table, JSON,
picture, TensorBoard; the sentences below the tables are made of their numbers.

Exit codes: 0; 2 for a mistake in the flags or files; 130 after Ctrl-C (what was measured is kept).
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli

FLAGS = flags.FLAGS
flags.DEFINE_list("models", "rnn,lstm,gru,transformer", "which, joined by commas")
flags.DEFINE_integer("parameters", 1_000_000, "weights of each, within 2 %")
flags.DEFINE_integer("layers", 2, "of each")
flags.DEFINE_float("seconds", 20.0, "of training for each, compiling not counted; 0: --tokens")
flags.DEFINE_integer("tokens", 200_000, "that each is trained on, with --seconds=0")
flags.DEFINE_float("learning_rate", 0.0, "its peak (Adam, warm-up, cosine); 0: each kind's own")
flags.DEFINE_integer("length", 128, "bytes of a window in that training")
flags.DEFINE_integer("step_tokens", 2048, "bytes of a training step, whatever the window")
flags.DEFINE_list("lengths", "32,128,512", "windows that training is timed with")
flags.DEFINE_list("contexts", "64,256,1024,4096", "bytes before those that decoding is timed with")
flags.DEFINE_string("engine", "litert", "that decodes: litert, litert:int8, xla, graph")
flags.DEFINE_integer("repetitions", 5, "timed steps, and timed generations")
flags.DEFINE_integer("threads", 0, "threads an operator may use; 0: all cores")
flags.DEFINE_string("text", None, "file to train on; default: the project's own public-domain text")
flags.DEFINE_string("eval_text", None, "file that perplexity is measured on; default: another one "
                    "of the project's own")
flags.DEFINE_integer("eval_tokens", 16_384, "bytes of it")
flags.DEFINE_string("output", "results_evolution.json", "where the rows are written")
flags.DEFINE_string("picture", "evolution.png", "where the picture is written, .png or .svg")
flags.DEFINE_string("logdir", "logs", "where TensorBoard finds the runs")


def run():
    from tfspeed.evolution import job
    return job.run(FLAGS)


if __name__ == "__main__":
    cli.main(run, __doc__)
