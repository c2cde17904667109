"""Serves a model to many at once, over OpenAI's protocol, and a page to chat on.

    python scripts/serve.py                                    SmolLM2-135M on 127.0.0.1:8000
    python scripts/serve.py --engine=xla --port=9000           without a C compiler
    TFSPEED_API_KEY=secret python scripts/serve.py --host=0.0.0.0      for others, who need the key
    curl -s localhost:8000/v1/chat/completions -H "Content-Type: application/json" \\
      -d '{"messages": [{"role": "user", "content": "Hello"}]}'

/v1/models, /v1/completions, /v1/chat/completions, /metrics, /healthz, /openapi.json. Ctrl-C stops
it: what runs may finish for --grace_s.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli

FLAGS = flags.FLAGS
cli.define_serving_flags()
flags.DEFINE_string("host", "127.0.0.1", "address to listen on; 0.0.0.0: all of this machine's")
flags.DEFINE_integer("port", 8000, "port to listen on; 0: any")
flags.DEFINE_integer("max_body_kb", 1024, "size of a request, at most")
flags.DEFINE_integer("max_new_tokens", 4096, "tokens of an answer, at most")
flags.DEFINE_float("timeout_s", 600.0, "seconds that an answer may take")
flags.DEFINE_float("grace_s", 10.0, "seconds that what runs may take to finish after Ctrl-C")


def run():
    from tfspeed.serving import job
    return job.run(FLAGS)


if __name__ == "__main__":
    cli.main(run, __doc__)
