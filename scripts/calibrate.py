"""Measures this machine in a minute, so that times can be predicted; or checks the predictions.

    python scripts/calibrate.py                    calibrates; the file is kept in the cache folder
    python scripts/calibrate.py --check            predicts and measures 84 other configurations
    python scripts/calibrate.py --check_choice     lets the planner choose, with a glance at what it
                                                   cannot tell apart, and measures a grid of 42
    python scripts/calibrate.py --engines=fused    leaves out the others: two thirds of it

What is timed are made-up models of a few sizes; what is kept are some twenty-five constants of each
engine: see tfspeed/costs. Nothing else should run meanwhile, and 7 GB be free. A virtual machine's
cores are moved by its host: what is timed while they lie elsewhere than most of the time does not
count. A calibration is of a machine, its cores, TensorFlow's version and our kernels: where one of
them is another, it is refused.

Exit codes: 0; 2 for a mistake in the flags or no calibration that can be checked; 130 after Ctrl-C.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli

FLAGS = flags.FLAGS
flags.DEFINE_list("threads", None, "numbers of threads; default: 1 and all cores")
flags.DEFINE_string("engines", "fused,litert,graph,xla", "engines, joined by commas")
flags.DEFINE_integer("moments", 1, "how often all is timed, also by --check; of several the "
                     "median counts: 3 take three minutes and predict better where other machines "
                     "share this one", lower_bound=1)
flags.DEFINE_bool("check", False, "predict and measure configurations that no calibration reads")
flags.DEFINE_bool("check_choice", False,
                  "measure a whole grid beside what the planner chooses of it")
flags.DEFINE_string("output", "calibration_check.json", "for the checks: where rows are written")
flags.DEFINE_string("picture", "calibration_check.png", "for --check: measured over predicted")


def run():
    from tfspeed import calibrate_job
    return calibrate_job.run(FLAGS)


if __name__ == "__main__":
    cli.main(run, __doc__)
