"""WAV files by name, and what is said in them."""

import re
from pathlib import Path

from tfspeed.errors import TfspeedError

_SPHINX = re.compile(r"^\s*<s>(.*)</s>\s*\(([^()]+)\)\s*$")


def find(names: str) -> list[Path]:
    """The files of a list of files and folders, joined by ','.

    Raises:
        TfspeedError: one is missing, or a folder holds none.
    """
    found: list[Path] = []
    for name in filter(None, (n.strip() for n in names.split(","))):
        path = Path(name)
        try:
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() == ".wav") \
                if path.is_dir() else [path]
            missing = not path.exists()
        except OSError as error:
            raise TfspeedError("--audio cannot be read.", path=name,
                               cause=error.strerror) from error
        if missing or not inside:
            raise TfspeedError("--audio must name WAV files, or folders that hold some.", path=name)
        found += inside
    if not found:
        raise TfspeedError("--audio must name WAV files, folders of them, or stdin.", audio=names)
    return found


def transcripts(path: str) -> dict[str, str]:
    """Text by the file's name without its ending, and by `folder/name` where that is given: see
    `transcript`.

    Raises:
        TfspeedError: the file cannot be read, or a line is of neither form.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise TfspeedError("--transcripts must be a readable UTF-8 text file.", path=path,
                           cause=str(error)[:200]) from error
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if match := _SPHINX.match(line):
            text, name = match.groups()
        elif "\t" in line:
            name, _, text = line.partition("\t")
        else:
            raise TfspeedError("A line of --transcripts is `name<TAB>text`, or `<s> text </s> "
                               "(name)`.", path=path, line=number)
        *folders, name = re.sub(r"\.wav$", "", name.strip(), flags=re.IGNORECASE).split("/")
        found["/".join([*folders[-1:], name])] = text.strip()
        found.setdefault(name, text.strip())
    return found


def transcript(said: dict[str, str], path: Path) -> str | None:
    """What `transcripts` has of a file: files of one name may lie in several folders."""
    return said.get(f"{path.absolute().parent.name}/{path.stem}", said.get(path.stem))
