"""Where tfspeed keeps what is costly to find out or to put together."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/tfspeed`, or `~/.cache/tfspeed`; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfspeed"
