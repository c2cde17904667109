"""Runs an application end to end: dialogue, speech to text, translation.

    python scripts/scenario.py --scenario=dialogue
    python scripts/scenario.py --scenario=speech --audio=clips/ --transcripts=clips/transcription
    python scripts/scenario.py --scenario=speech --audio=a.wav,b.wav --language=de --task=translate
    arecord -f S16_LE -r 16000 | python scripts/scenario.py --scenario=speech --audio=stdin
    python scripts/scenario.py --scenario=translation --audio=clips/ --language=de
    python scripts/scenario.py --scenario=translation --pairs=de.po --model=my_t5
    python scripts/scenario.py --scenario=speech --audio=clips/ --strategy=multi_worker --workers=2

Texts go to standard output, the row into --output. Exit codes: 0; 2 for a mistake in the flags or
files; 130 after Ctrl-C.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli
from tfspeed.scenarios import SCENARIOS, module_of

FLAGS = flags.FLAGS
_SHARED = {"module_name": sys.argv[0]}
flags.DEFINE_enum("scenario", "speech", list(SCENARIOS), "what is done", **_SHARED)
flags.DEFINE_string("engine", "litert:int8", "how a step is executed, see scripts/run.py; dialogue "
                    "is served by fused:int8", **_SHARED)
flags.DEFINE_integer("threads", 0, "threads an operator may use; 0: all cores", **_SHARED)
flags.DEFINE_string("output", "results.json", "where the row is written", **_SHARED)
cli.define_model_flags()
cli.define_worker_flags()
for name in SCENARIOS:
    module_of(name).define_flags(_SHARED)


def run():
    return module_of(FLAGS.scenario).run(FLAGS)


if __name__ == "__main__":
    cli.main(run, __doc__)
