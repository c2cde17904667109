"""The job behind `scripts/gallery.py`: every picture of the documents, out of its JSON."""

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tfspeed import scaling_job
from tfspeed.errors import TfspeedError
from tfspeed.evolution import report as evolution
from tfspeed.export.files import appearing
from tfspeed.measure import pareto, pictures, predictions, roofline
from tfspeed.measure.report import read_json, write_json
from tfspeed.serving import goodput

# Name of the JSON file, and so of its pictures → what draws its rows, and how large.
GALLERY: dict[str, tuple[Callable, tuple[float, float]]] = {
    "pareto": (lambda rows: pareto.painter(pareto.of_rows(rows), "Speed over quality"),
               pareto.SIZE),
    "roofline": (roofline.painter, roofline.SIZE),
    "scaling": (scaling_job.painter, scaling_job.SIZE),
    "goodput": (goodput.painter, goodput.SIZE),
    "evolution": (evolution.painter, evolution.SIZE),
    "predictions": (predictions.painter, predictions.SIZE),
}
THEMES = {"light": False, "dark": True}
LIMIT = 60_000  # bytes of a picture
# Of rows; no picture shows them.
_HEAVY = ("samples", "itl_s", "profile", "notes", "losses", "rounds", "at_home", "placement",
          "memory_gb_per_s")


def run(flags) -> None:
    """Does what the flags of `scripts/gallery.py` say."""
    folder = Path(flags.folder)
    if not folder.is_dir():
        raise TfspeedError("--folder must be that of the JSON files.", folder=flags.folder)
    for text in flags.take or ():
        take(folder, text)
    drawn = draw(folder)
    if not drawn:
        raise TfspeedError("There is nothing to draw.", folder=flags.folder,
                           known=[f"{name}.json" for name in GALLERY])
    for path in drawn:
        print(f"{path}  {path.stat().st_size / 1e3:.0f} kB")


def take(folder: Path, text: str) -> None:
    """Copies the rows of results, `name=file` or `name=file+file`, without their samples."""
    name, _, files = text.partition("=")
    if name not in GALLERY or not files:
        raise TfspeedError(f"--take is NAME=FILE, NAME one of {', '.join(GALLERY)}.", take=text)
    contents = [read_json(path) for path in files.split("+")]
    rows = [light(row) for content in contents for row in content["rows"]]
    write_json(folder / f"{name}.json", contents[-1]["environment"], rows)


def light(value):
    """The same without what no picture shows."""
    if isinstance(value, dict):
        return {k: light(v) for k, v in value.items() if k not in _HEAVY}
    return [light(v) for v in value] if isinstance(value, list) else value


def draw(folder: Path) -> list[Path]:
    """Writes both themes of each picture whose JSON is there."""
    made = []
    for name, (painter, size) in GALLERY.items():
        source = folder / f"{name}.json"
        if not source.exists():
            continue
        rows = read_json(source)["rows"]
        for theme, dark in THEMES.items():
            path = folder / f"{name}-{theme}.svg"
            with appearing(path) as beside:
                beside.write_bytes(sealed(
                    pictures.rendered(painter(rows), size, "svg", dark), source))
            if path.stat().st_size > LIMIT:
                raise TfspeedError("This picture is too large for the documents.", path=str(path),
                                   bytes=path.stat().st_size, most=LIMIT)
            made.append(path)
    return made


def sealed(svg: bytes, source: Path) -> bytes:
    """With a comment that says which JSON it was drawn from."""
    return svg.rstrip() + f"\n<!-- {source.name} sha256 {_digest(source)} -->\n".encode()


def stale(folder: Path) -> Sequence[str]:
    """Pictures that are missing or were drawn from other JSON than there is now."""
    found = []
    for name in GALLERY:
        source = folder / f"{name}.json"
        for theme in THEMES if source.exists() else ():
            path = folder / f"{name}-{theme}.svg"
            told = re.search(r"sha256 (\w+)", path.read_text("utf-8")) if path.exists() else None
            if not told or told[1] != _digest(source):
                found.append(path.name)
    return found


def _digest(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()
