"""Scripts as a user starts them, but for the import of TensorFlow, which takes four seconds: each
call is a fork of one process that has done it, the same for all tests of a pytest process. What
imports do is tested by those tests of the scripts that start a Python of their own."""

import atexit
import functools
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
_SERVER, _CLIENT = (Path(__file__).with_name(f"fork_{name}.py") for name in ("server", "client"))


@functools.cache
def _address() -> str:
    """The socket of the process that forks; it ends with this one."""
    folder = tempfile.TemporaryDirectory()
    address = f"{folder.name}/socket"
    server = subprocess.Popen([sys.executable, str(_SERVER), address, str(ROOT)], text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    if server.stdout.readline() != "ready\n":
        raise AssertionError("the process that forks did not start")

    def end():
        server.stdin.close()
        server.wait()
        folder.cleanup()

    atexit.register(end)
    return address


def start(script: str, *args: str, cwd: Path, text: bool = True, **kwargs) -> subprocess.Popen:
    """A call of `scripts/<script>`, or of the program at a whole path. What is returned hands
    signals on, has the call's streams and its exit code; the call has its environment, its limit
    on the size of files, and dies with it.

    Args:
        kwargs: of subprocess.Popen, whose stdout and stderr are pipes unless told otherwise.
    """
    command = [sys.executable, "-IS", str(_CLIENT), _address(), str(ROOT / "scripts" / script)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, *args], cwd=cwd, text=text, **streams | kwargs)


def run(script: str, *args: str, cwd: Path, given=None, **kwargs) -> tuple:
    """Exit code, stdout and stderr of a call, whose stdin is `given` and then ends."""
    with start(script, *args, cwd=cwd, stdin=subprocess.PIPE, **kwargs) as process:
        try:
            out, err = process.communicate(given, timeout=300)
        finally:
            process.kill()
    return process.returncode, out, err


def calls(script: str, arguments: list[list[str]], cwd: Path) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each call of `scripts/<script>`, one after the other."""
    return [run(script, *each, cwd=cwd) for each in arguments]
