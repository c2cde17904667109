"""Measures how a model serves many at once: open loop, Poisson arrivals or a trace replayed.

    python scripts/bench_serve.py --requests=16                     16 streams, all at once
    python scripts/bench_serve.py --rates=1,2,4 --goodput=ttft:500,tpot:50
    python scripts/bench_serve.py --trace=AzureLLMInferenceTrace_conv.csv --rates=1,2,4 \\
      --requests=100 --trace_scale=0.25                             lengths to a quarter
    python scripts/bench_serve.py --trace=… --rates=auto --picture=goodput.png \\
      "--goodput=ttft:500,tpot:30;ttft:2000,tpot:100"               goodput over the rate
    python scripts/bench_serve.py --requests=32 --shared_prefix=512
    python scripts/bench_serve.py --url=http://127.0.0.1:8000 --rates=2    a server that runs

Without --url scheduler and engine run in this process, without HTTP. Names are those of
`vllm bench serve`.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli

FLAGS = flags.FLAGS
cli.define_serving_flags()
flags.DEFINE_string("rates", None, "requests a second, several joined by commas, one row each; "
                    "auto: a quarter to one and a half of what is served when all come at once; "
                    "default: all at once, or as in the trace")
flags.DEFINE_integer("requests", 64, "how many are sent at each rate")
flags.DEFINE_integer("prompt_tokens", 128, "mean length of the prompts")
flags.DEFINE_integer("new_tokens", 128, "mean length of the answers")
flags.DEFINE_float("spread", 0.5, "lengths are uniform in 1 - spread to 1 + spread of the mean")
flags.DEFINE_integer("shared_prefix", 0, "tokens with which all prompts begin")
flags.DEFINE_string("trace", None, "CSV file of TIMESTAMP,ContextTokens,GeneratedTokens to replay")
flags.DEFINE_float("trace_scale", 1.0, "the trace's lengths are multiplied by it")
flags.DEFINE_string("goodput", "", "limits in ms that a good request keeps: ttft:500,tpot:50; "
                    "several sets joined by semicolons")
flags.DEFINE_string("url", None, "a running server that speaks OpenAI's protocol; --model then "
                    "only gives the tokenizer")
flags.DEFINE_string("served_model", None, "what that server calls its model; default: --model")
flags.DEFINE_integer("context", 0, "tokens of a prompt and its answer there; 0: the model's")
flags.DEFINE_string("eval_text", None, "text file for the prompts; default: the project's own "
                    "public-domain text")
flags.DEFINE_string("picture", None, "where goodput over the rate is drawn, .png or .svg")
flags.DEFINE_string("logdir", "logs", "where TensorBoard finds that picture")
flags.DEFINE_string("output", "results_serve.json", "where the rows are written")


def run():
    from tfspeed.serving import bench_job
    return bench_job.run(FLAGS)


if __name__ == "__main__":
    cli.main(run, __doc__)
