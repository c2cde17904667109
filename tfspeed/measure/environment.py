"""What a row was measured on."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import psutil

import tfspeed
from tfspeed.devices import available_cores, cpu_model

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16", "asimd")
_PACKAGES = ("tensorflow", "keras", "numpy", "tokenizers", "gguf")


def environment() -> dict:
    """Machine, versions, commit and time, ready for JSON."""
    import tensorflow as tf

    gpus = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
            for gpu in tf.config.list_physical_devices("GPU")]
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(), "cores": available_cores(), "cpu_flags": _cpu_flags(),
        "memory_bytes": psutil.virtual_memory().total, "gpus": gpus,
        "os": platform.platform(), "python": platform.python_version(),
        "tfspeed": tfspeed.__version__, "commit": _commit(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _cpu_flags() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    line = next((x for x in text.splitlines() if x.startswith(("flags", "Features"))), "")
    present = set(line.split())
    return [flag for flag in _FLAGS if flag in present]


def _commit() -> str | None:
    """The checkout's commit, with a + if something is changed; None outside of a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty=+"],
                              capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
