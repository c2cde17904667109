"""Which devices there are, and how many threads. All of it must be set before TensorFlow starts.

TensorFlow is imported where it is asked: what only counts cores starts in no time.
"""

import contextlib
import os
import platform
from pathlib import Path

from tfspeed.errors import TfspeedError

_LOGICAL = 16  # logical devices that any CPU may be split into
_CACHES = "/sys/devices/system/cpu/cpu0/cache"
_UNITS = {"K": 1 << 10, "M": 1 << 20}
JOB_CORES = "TFSPEED_JOB_CORES"  # what a `Supervisor` tells its workers


def available_cores() -> int:
    """Cores that this process may use (a container may grant fewer than the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def job_cores() -> int:
    """Cores that this process and the workers beside it may use together."""
    return int(os.environ.get(JOB_CORES) or available_cores())


def last_level_cache_bytes() -> int:
    """Of the first core's last-level cache, which others may use too; 32 MB where nobody tells."""
    found = []
    for path in Path(_CACHES).glob("index*/size"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            size = path.read_text().strip()
            found.append(int(size[:-1]) * _UNITS[size[-1:]])
    return max(found, default=0) or 32 << 20


def set_threads(threads: int) -> int:
    """Limits TensorFlow to `threads` threads an operator; 0 means all cores. Returns the count."""
    import tensorflow as tf
    most = 4 * max(available_cores(), os.cpu_count() or 1)
    if not 0 <= threads <= most:
        raise TfspeedError(f"--threads must be 0 (all cores) or at most {most}, four times the "
                           "cores there are.", threads=threads)
    count = threads or available_cores()
    if tf.config.threading.get_intra_op_parallelism_threads() == count:
        return count
    try:
        tf.config.threading.set_intra_op_parallelism_threads(count)
    except RuntimeError as error:
        raise TfspeedError("Threads must be set before TensorFlow runs anything.",
                           threads=threads) from error
    return count


def replica_devices(replicas: int) -> list[str]:
    """Names of the devices that replicas run on: GPUs, or logical CPU devices without any.

    Args:
        replicas: how many; 0 means every GPU, or as many CPU devices as cores (at least 2).

    Logical CPU devices share the cores: they show how replicas behave, and raise throughput only
    where one replica leaves cores idle.
    """
    import tensorflow as tf
    if replicas < 0:
        raise TfspeedError("The number of replicas must be 0 (all devices) or more.",
                           replicas=replicas)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        if replicas > len(gpus):
            raise TfspeedError("There are not that many GPUs.", replicas=replicas, gpus=len(gpus))
        return [f"GPU:{i}" for i in range(replicas or len(gpus))]
    return logical_cpus(replicas or max(2, available_cores()))


def logical_cpus(count: int) -> list[str]:
    """Splits the CPU into `count` logical devices, `CPU:0`, `CPU:1`, …"""
    import tensorflow as tf
    most = max(_LOGICAL, 4 * available_cores())
    if count > most:  # each has threads of its own: thousands never come up
        raise TfspeedError(f"A CPU is split into at most {most} devices.", replicas=count)
    cpu = tf.config.list_physical_devices("CPU")[0]
    configured = tf.config.get_logical_device_configuration(cpu) or ()
    if len(configured) < count:
        try:
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration() for _ in range(count)])
        except RuntimeError as error:
            raise TfspeedError(
                "Replicas on the CPU must be set up before TensorFlow runs anything.",
                replicas=count, logical_cpus=max(1, len(configured))) from error
    return [f"CPU:{i}" for i in range(count)]


def mirrored_strategy(devices: list[str]):
    """Replicas on these devices, as `replica_devices` names them."""
    import tensorflow as tf
    # TensorFlow's collectives on one CPU fail where a process makes a second strategy: their keys
    # are the same. Adding up on one device needs none.
    on_cpu = devices[0].startswith("CPU")
    reduction = tf.distribute.ReductionToOneDevice() if on_cpu else None
    return tf.distribute.MirroredStrategy(devices, reduction)


def per_replica(strategy, parts):
    """A value of a `tf.distribute.Strategy`: `parts[i]` on replica i, for those of this process."""
    import tensorflow as tf
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.convert_to_tensor(parts[context.replica_id_in_sync_group]))


def cpu_model() -> str:
    """The processor's name, as the kernel tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def default_device() -> str:
    """The device that TensorFlow puts a single model on."""
    import tensorflow as tf
    return "GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0"
