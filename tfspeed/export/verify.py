"""Compares an artifact with its manifest: the bytes, then what it does when it is run."""

import contextlib
import math
from pathlib import Path

import rich.box
import rich.console
import rich.markup
import rich.table
import tensorflow as tf

from tfspeed.errors import TfspeedError
from tfspeed.export import evidence, litertlm, manifest, runners, tflite
from tfspeed.export.files import listing
from tfspeed.measure.progress import Progress

MISMATCH = 1
# Another processor rounds otherwise; a wrong weight shows in the second digit.
_TOLERANCE = {"perplexity": 1e-3, "perplexity_delta": 1e-3, "top1_agreement": 2e-3,
              "evaluated_tokens": 0}


def run(target: str) -> int:
    """Prints the comparison; returns 0 where all is equal, else 1."""
    if not target:
        raise TfspeedError("--verify must name an artifact of scripts/export.py.", verify=target)
    path, bar = Path(target), Progress()
    form = form_of(path)
    check(path, form)
    record = manifest.read(path)
    if record["format"] != form:
        raise TfspeedError("The manifest is that of another format.", format=record["format"],
                           artifact=str(path))
    rows = compare_files(record["files"], listing(path))
    if all(same for *_, same in rows):  # else what it does proves nothing
        windows, asked = record["evaluation"].get("windows", ()), record["probes"]
        try:
            with (bar.task(f"running {path.name}", len(windows) + len(asked)) as advance,
                  opened(path, form) as runner):
                rows += compare_runs(record, evidence.measure_again(runner, record, advance))
        except TfspeedError:
            raise
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError,
                RuntimeError, tf.errors.OpError) as error:
            raise TfspeedError("The manifest is damaged: what it records cannot be run again.",
                               manifest=str(manifest.path_of(path)),
                               cause=f"{type(error).__name__}: {str(error).strip()}"
                               .splitlines()[0][:200]) from error
    console = rich.console.Console()
    console.print(table(rows))
    unequal = [name for name, *_, same in rows if not same]
    if not unequal:
        console.print(f"{path.name} is what its manifest says.", highlight=False, markup=False)
        return 0
    why = ("It was changed or damaged after it was exported."
           if any(name.startswith("sha256") for name in unequal) else
           "Its bytes are those that were exported: another processor, or another version of the "
           "runtime, computes otherwise here, or the manifest was changed.")
    console.print(f"mismatch: {path.name} is not what its manifest says: {', '.join(unequal)}. "
                  f"{why}", highlight=False, markup=False, soft_wrap=True)
    return MISMATCH


def form_of(path: Path) -> str:
    """The format of an artifact, by its name."""
    try:
        if path.is_dir():
            return "saved_model"
        exists = path.is_file()
    except (OSError, ValueError):  # a name longer than any file's, or with a NUL in it
        exists = False
    if not exists:
        raise TfspeedError("--verify must name an artifact of scripts/export.py.",
                           verify=str(path)[:200], hint="There is no such file or folder.")
    form = {".tflite": "tflite", ".litertlm": "litertlm", ".keras": "keras"}.get(path.suffix)
    if form is None:
        raise TfspeedError("--verify takes a .tflite, .litertlm or .keras file, or a SavedModel "
                           "folder.", verify=str(path))
    return form


def check(path: Path, form: str) -> None:
    """Refuses what is no artifact of the format, or none of ours."""
    if form == "tflite":
        tflite.description(path)
    elif form == "litertlm":
        with litertlm.model_file(path) as file:
            tflite.description(file)
    elif form == "saved_model" and not (path / "saved_model.pb").is_file():
        raise TfspeedError("This folder is no SavedModel: it has no saved_model.pb.",
                           path=str(path))


@contextlib.contextmanager
def opened(path: Path, form: str):
    """A runner (see `runners`) of an artifact."""
    with contextlib.ExitStack() as stack:
        if form == "saved_model":
            runner = runners.SavedModelRunner(path)
        elif form == "keras":
            runner = runners.KerasRunner(path)
        else:
            file = stack.enter_context(litertlm.model_file(path)) if form == "litertlm" else path
            runner = runners.of_tflite(file)
        stack.callback(runner.close)
        yield runner


def compare_files(recorded: list[dict], found: list[dict]) -> list[tuple]:
    """Rows of (what, as recorded, as found, whether they are equal)."""
    try:
        before = {entry["path"]: (entry["sha256"], entry["bytes"]) for entry in recorded}
    except (KeyError, TypeError) as error:
        raise TfspeedError("The manifest is damaged: its list of files cannot be read.") from error
    now = {entry["path"]: (entry["sha256"], entry["bytes"]) for entry in found}
    rows = []
    for name in sorted(before | now):
        (old, size), (new, size_now) = before.get(name, ("", 0)), now.get(name, ("", 0))
        rows.append((f"sha256 of {name}", f"{old[:8]}…" if old else "no such file",
                     f"{new[:8]}…" if new else "missing", (old, size) == (
                         new, size_now)))
    return rows


def compare_runs(record: dict, again: dict) -> list[tuple]:
    """As `compare_files`, of quality and answers."""
    rows = []
    for name, allowed in _TOLERANCE.items():
        old = record["quality"].get(name)
        if old is None:  # no tokenizer: no perplexity
            continue
        new = again["quality"][name]
        scale = abs(old) if name == "perplexity" else 1.0
        rows.append((name, f"{old:.6g}", f"{new:.6g}",
                     math.isfinite(new) and abs(new - old) <= allowed * scale))
    for number, (probe, answer) in enumerate(zip(record["probes"], again["answers"], strict=True)):
        rows.append((f"answer {number}: {probe['prompt'] or 'random tokens'}",
                     _start(probe["answer"]), _start(answer), probe["answer"] == answer))
    return rows


def _start(spelled: str) -> str:
    words = spelled.split()
    return " ".join(words[:3]) + (" …" if len(words) > 3 else "")


def table(rows: list[tuple]) -> rich.table.Table:
    shown = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    shown.add_column("", overflow="fold", min_width=32)
    for name in ("manifest", "now"):
        shown.add_column(name, overflow="ellipsis", no_wrap=True)
    shown.add_column("", no_wrap=True)
    for name, old, new, same in rows:
        shown.add_row(rich.markup.escape(name), old, new, "equal" if same else "DIFFERENT")
    return shown
