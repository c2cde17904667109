"""Real worker processes of a MultiWorkerMirroredStrategy on this machine, for tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tfspeed.cluster import addresses

ROOT = Path(__file__).parents[1]

# What every worker runs first: a strategy whose collectives are rings over gRPC.
_PRELUDE = """
import json, sys, time
import numpy as np
import tensorflow as tf
communication = tf.distribute.experimental
strategy = tf.distribute.MultiWorkerMirroredStrategy(
    communication_options=communication.CommunicationOptions(
        implementation=communication.CommunicationImplementation.RING))
rank = strategy.cluster_resolver.task_id
"""


def run_workers(count: int, program: str, timeout: float = 150) -> list[dict]:
    """Runs a program in `count` workers; each prints one line of JSON last, which is returned.

    Args:
        program: Python that finds `strategy`, `rank`, `tf` and `np`.
    """
    cluster, processes = addresses.local(count, addresses.LOOPBACK), []
    for index in range(count):
        environment = {**os.environ, "TF_CONFIG": cluster.of(index).tf_config(),
                       "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(ROOT),
                       "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
        processes.append(subprocess.Popen([sys.executable, "-c", _PRELUDE + program], text=True,
                                          env=environment, stdout=subprocess.PIPE,
                                          stderr=subprocess.PIPE))
    try:
        done = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    failed = [err[-2000:] for process, (_, err) in zip(processes, done, strict=True)
              if process.returncode]
    if failed:
        raise AssertionError("\n\n".join(failed))
    return [json.loads(out.splitlines()[-1]) for out, _ in done]
