"""Many calls of a script, each in a fork of one process that has imported TensorFlow already: four
seconds a call less. What a user starts is tested by the other tests of the scripts."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

_PROGRAM = """
import json, os, runpy, sys, time
script, root, calls = sys.argv[1], sys.argv[2], json.loads(sys.stdin.read())
sys.path.insert(0, root)
from tfspeed import cli
cli.quiet_tensorflow()
import tensorflow, keras
from tfspeed import main_job
results = []
for i, arguments in enumerate(calls):
    names = f"forked-{i}.out", f"forked-{i}.err"
    sys.stdout.flush()
    child = os.fork()
    if not child:
        for descriptor, name in zip((1, 2), names):
            os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
        sys.argv = [script, *arguments]
        code = 0
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    deadline = time.monotonic() + 120
    while not (found := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, 9)
        time.sleep(0.01)
    results.append([os.waitstatus_to_exitcode(found[1]), *(open(n).read() for n in names)])
    for name in names:
        os.remove(name)
print(json.dumps(results))
"""


def calls(script: str, arguments: list[list[str]], cwd: Path) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each call of `scripts/<script>`, one after the other."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM, str(ROOT / "scripts" / script),
                           str(ROOT)], input=json.dumps(arguments), cwd=cwd, text=True,
                          capture_output=True, timeout=600)
    if done.returncode:
        raise AssertionError(done.stderr)
    return [tuple(result) for result in json.loads(done.stdout.splitlines()[-1])]
