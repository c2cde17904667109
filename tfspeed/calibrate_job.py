"""The job behind `scripts/calibrate.py`: measure this machine, or check its calibration.

TensorFlow is imported by those who need it, since a calibration has a minute: the processes that
time models import it while this one does.
"""

import rich.box
import rich.console
import rich.table

from tfspeed.costs import calibrating
from tfspeed.costs.cases import ENGINES
from tfspeed.devices import available_cores
from tfspeed.errors import TfspeedError
from tfspeed.export.files import ended_by_sigterm
from tfspeed.measure.progress import Progress

_SCATTER = 0.12  # of a fit's worst errors; on a quiet machine they are 0.08 to 0.1


def run(flags) -> None:
    """Does what the flags of `scripts/calibrate.py` say."""
    threads = _threads(flags.threads)
    engines = [name for name in flags.engines.split(",") if name]
    if not engines or not set(engines) <= set(ENGINES):
        raise TfspeedError(f"--engines must be among {', '.join(ENGINES)}.",
                           engines=flags.engines)
    if flags.check and flags.check_choice:
        raise TfspeedError("--check and --check_choice are two checks, one at a time.")
    if flags.check_choice and flags.moments > 1:
        raise TfspeedError("--check_choice measures its grid at one moment.",
                           moments=flags.moments)
    with ended_by_sigterm():  # which ends the processes that time, and keeps what a check has
        if flags.check or flags.check_choice:
            _check(flags, threads, engines)
        else:
            made = calibrating.calibrate(threads, engines, Progress(), flags.moments)
            _keep(made)


def _check(flags, threads: list[int], engines: list[str]) -> None:
    from tfspeed.costs import calibration, checking
    from tfspeed.main_job import check_writable
    for name in ("output", "picture"):
        check_writable(flags[name].value, name)
    if flags.check_choice:
        checking.run_choice(calibration.load(), threads, flags.output)
    else:
        checking.run(calibration.load(), threads, engines, flags.output, flags.picture,
                     flags.moments)


def _keep(made) -> None:
    from tfspeed.costs import calibration
    target = calibration.save(made)
    _print(made)
    print(f"Calibrated in {made.seconds:.0f} s: {target}")


def _threads(spelled: list[str] | None) -> list[int]:
    """One, and all cores, where nothing is said."""
    cores = available_cores()
    try:
        found = sorted({int(count) for count in spelled}) if spelled else sorted({1, cores})
    except ValueError:
        found = []
    if not found or found[0] < 1 or found[-1] > cores:
        raise TfspeedError("--threads must be numbers from 1 to that of the cores.",
                           threads=spelled, cores=cores)
    return found


def _print(made) -> None:
    table = rich.table.Table("threads", "engine", "times", "median error", "95th percentile",
                             box=rich.box.SIMPLE_HEAD, title="How well the constants fit the times "
                             "that they come from", title_justify="left")
    for threads, engines in made.fits.items():
        for engine, fit in engines.items():
            table.add_row(threads, engine, str(fit["times"]), f"{fit['median_error']:.1%}",
                          f"{fit['p95_error']:.1%}")
    rich.console.Console().print(table)
    away = sum(fit["elsewhere"] for engines in made.fits.values() for fit in engines.values())
    if away:
        print(f"{away} generations were timed only while the machine's cores lay elsewhere than "
              "most of the time\n(a virtual machine's are moved by its host); they count all the "
              "same.")
    most = max(fit["p95_error"] for engines in made.fits.values() for fit in engines.values())
    if most > _SCATTER:
        print(f"Some of these times differ by {most:.0%} from what all together say: something "
              "else ran, or others\nuse this machine too. Predictions will be as far off: "
              "calibrate again when it is quiet.")
