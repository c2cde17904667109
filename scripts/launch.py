"""Runs the job of scripts/run.py over workers on several hosts: start it on each of them.

    python scripts/launch.py --hosts=10.0.0.1:2222,10.0.0.2:2222 --index=0 --bind=10.0.0.1 \\
        --strategy=multi_worker --batch=16              on the first host: it prints and writes
    python scripts/launch.py --hosts=10.0.0.1:2222,10.0.0.2:2222 --index=1 --bind=10.0.0.2 \\
        --strategy=multi_worker --batch=16              on the second

All other flags are those of scripts/run.py, and must be the same everywhere. Under Kubernetes or
Slurm, where TF_CONFIG is set, scripts/run.py does the same without this script. TensorFlow's
connections are neither authenticated nor encrypted: keep the ports on a private network.
Exit codes: those of scripts/run.py.
"""

import os
import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tfspeed import cli, run_flags

FLAGS = flags.FLAGS
run_flags.define()
flags.DEFINE_string("hosts", None, "address of each worker, host:port, the chief first")
flags.DEFINE_integer("index", None, "which of them is started here, counted from 0")


def run():
    from tfspeed import cluster_job, main_job
    from tfspeed.cluster import addresses
    from tfspeed.errors import TfspeedError
    if not FLAGS.hosts or FLAGS.index is None:
        raise TfspeedError("--hosts and --index say who this worker is.", hosts=FLAGS.hosts,
                           index=FLAGS.index, hint="For example --hosts=a:2222,b:2222 --index=0.")
    if not set(cluster_job.ON_WORKERS) & set(FLAGS.strategy.split("+")):
        raise TfspeedError("Workers need a strategy that shares out work.",
                           strategy=FLAGS.strategy,
                           hint="Add --strategy=multi_worker, or dataflow.")
    os.environ["TF_CONFIG"] = addresses.from_hosts(FLAGS.hosts, FLAGS.index).tf_config()
    return main_job.run(FLAGS)


if __name__ == "__main__":
    cli.main(run, __doc__)
