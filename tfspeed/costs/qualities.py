"""How much perplexity a configuration costs, which no formula knows: what rows measured, or else
`data/quality_priors.json`, which says of which model and is only a prior for another."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import strategies
from tfspeed.errors import TfspeedError
from tfspeed.measure import report

PRIORS = Path(__file__).parents[1] / "data" / "quality_priors.json"


@dataclasses.dataclass(frozen=True)
class Quality:
    """How much perplexity rises, a fraction; None: not known. `source` says of what."""

    strategy: str
    options: tuple[tuple[str, object], ...]
    engine: str
    increase: float | None
    source: str

    @property
    def measured(self) -> bool:
        return self.source == "measured"

    def made(self):
        """The strategy itself, with its options."""
        given = {name.removeprefix(f"{self.strategy}_"): value for name, value in self.options}
        options = strategies.find(self.strategy).Options(**given)
        return strategies.create(self.strategy, {self.strategy: options})


def qualities(rows: Sequence[dict] = (), model: str = "") -> list[Quality]:
    """The priors; where rows measured the same of this model, what they found."""
    try:
        told = json.loads(PRIORS.read_text(encoding="utf-8"))["priors"]
    except (OSError, ValueError, KeyError) as error:
        raise TfspeedError("The quality priors cannot be read.", path=str(PRIORS)) from error
    seen = {(row["strategy"], row["engine"]): row["perplexity_delta"] for row in rows
            if row["model"] == model and row.get("perplexity_delta") is not None}
    found = []
    for prior in told:
        quality = Quality(prior["strategy"], tuple(prior.get("options", {}).items()),
                          prior["engine"], prior["perplexity_increase"],
                          f"prior: {prior['source']}")
        increase = seen.get((quality.made().label, quality.engine)) if seen else None
        found.append(quality if increase is None else dataclasses.replace(
            quality, increase=increase, source="measured"))
    return found


def read_rows(paths: Sequence[str]) -> list[dict]:
    """The rows of files that `scripts/run.py` or `bench.py` wrote."""
    found = []
    for path in paths:
        try:
            for row in report.read_json(path)["rows"]:
                row["model"], row["strategy"], row["engine"]  # what a row must say
                found.append(row)
        except (KeyError, TypeError) as error:
            raise TfspeedError("--results must name files that scripts/run.py wrote.",
                               path=path) from error
    return found
