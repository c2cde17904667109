"""Writes a model as a file to deploy, runs what was written, and records what it did.

    python scripts/export.py --format=tflite --out=dist            int8, for LiteRT on any device
    python scripts/export.py --format=litertlm --out=dist          a bundle for LiteRT-LM's apps
    python scripts/export.py --format=saved_model --out=dist       for TensorFlow Serving
    python scripts/export.py --format=keras --strategy=quantize --out=dist    --model takes it again
    python scripts/export.py --format=tflite --weights=int4 --out=dist --context=2048
    python scripts/export.py --verify=dist/smollm2-135m-int8.tflite    0: equal, 1: changed

Beside each artifact lies <artifact>.manifest.json: quality against the float32 model, answers to
probe prompts, SHA-256 and size of each file, versions. --verify takes nothing else.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("format", None, "tflite, litertlm, saved_model or keras")
flags.DEFINE_string("out", None, "folder that the artifact and its manifest go to")
flags.DEFINE_string("weights", None, "how weights are stored: float32, float16, int8, int4 or "
                    "int4,PATTERN=FORMAT…; default int8, in a SavedModel float32")
flags.DEFINE_integer("context", None, "tokens that a text may have; default 1024, or the model's")
flags.DEFINE_string("eval_text", None, "text file that quality is measured on; default: the "
                    "project's own public-domain text")
cli.define_model_flags()
flags.DEFINE_string("verify", None, "an artifact to compare with its manifest")


def run():
    from tfspeed.export import files, job
    with files.ended_by_sigterm():
        return job.run(FLAGS)


if __name__ == "__main__":
    cli.main(run, __doc__)
