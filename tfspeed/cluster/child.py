"""The first thing that a worker process runs: it dies with its supervisor, and has its cores.

    python child.py SUPERVISOR_PID CORES SCRIPT [ARGUMENT…]

Run as a file and importing nothing of tfspeed, so that the first milliseconds are covered; then
it becomes the script (both survive the call of exec). CORES are numbers joined by commas, or
nothing for all.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    supervisor, cores, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if cores:
            os.sched_setaffinity(0, map(int, cores.split(",")))
    if os.getppid() != int(supervisor):  # it died before we asked to be told
        sys.exit(1)
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main()
