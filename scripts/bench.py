"""Measures our engines beside other runtimes, on the same weights and machine, in turn.

    python scripts/bench.py --peers=keras_hub                   xla beside KerasHub's generate()
    python scripts/bench.py --peers= --engines=graph,xla        our engines among themselves
    python scripts/bench.py --peers=llama_cpp --engines="fused:int8;fused:int4,head=int4"

A peer is installed into .peers/<name> the first time and runs as a process of its own.

Exit codes as those of run.py: 3 if one of our rows is over its gate. Peers have none.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("peers", "keras_hub", "runtimes to measure beside ours, joined by commas: "
                    "keras_hub, llama_cpp (needs a model from a GGUF file)")
flags.DEFINE_string("engines", "xla", "our engines, joined by commas: graph, xla, "
                    "litert, litert:int8, litert:int4, fused, fused:int8 (by semicolons where a "
                    "format has commas)")
cli.define_common_flags(output="results_bench.json")


def run():
    from tfspeed import bench_job
    return bench_job.run(FLAGS)


if __name__ == "__main__":
    cli.main(run, __doc__)
