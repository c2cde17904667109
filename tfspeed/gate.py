"""The quality gate: by how much a row's perplexity may exceed the float32 baseline's.

A limit is a fraction: 0.01 is +1 %. It comes from what was done to the weights, by the strategy
(`Strategy.max_perplexity_increase`), the engine's format and the type; the largest counts.
"""

import math

from tfspeed.errors import TfspeedError

EXACT, INT8, INT4, STRUCTURAL = 0.001, 0.01, 0.03, 0.10


def check_limit(value: float | None) -> None:
    """Refuses a `--max_perplexity_increase` that cannot be meant."""
    if value is None or value == math.inf:
        return
    if not 0 <= value < 1:
        raise TfspeedError("--max_perplexity_increase is a fraction from 0 to 1: 0.03 is +3 %.",
                           max_perplexity_increase=value, hint="inf turns the gate off.")


def limit(strategy, engine: str, dtype: str = "float32") -> float:
    """The default limit of a strategy under an engine, with weights of a type."""
    return max(strategy.max_perplexity_increase, _engine_limit(engine),
               EXACT if dtype == "float32" else INT8)


def _engine_limit(engine: str) -> float:
    weights = engine.partition(":")[2]
    if not weights:
        return EXACT
    from tfspeed.litert.formats import Formats
    bits = Formats(weights).fewest_bits
    return EXACT if bits == 32 else INT8 if bits >= 8 else INT4


def judge(quality: dict, maximum: float) -> dict:
    """`{"limit", "passed"}` of a row's quality, by the point estimate; {} without perplexity."""
    if "perplexity_delta" not in quality:
        return {}
    return {"limit": maximum, "passed": bool(quality["perplexity_delta"] <= maximum)}  # NaN fails


def notes(quality: dict, verdict: dict) -> list[str]:
    """What a report must say about a verdict."""
    if not verdict:
        return []
    said, maximum = [], verdict["limit"]
    if not verdict["passed"]:
        said.append(f"Perplexity rises by {quality['perplexity_delta'] * 100:.2f} %, over the gate "
                    f"of {maximum * 100:g} %: this row FAILED, the exit code is 3. "
                    "(--max_perplexity_increase sets the gate.)")
    interval = quality.get("perplexity_delta_interval")
    if interval and interval["low"] <= maximum < interval["high"]:
        said.append(f"The gate of {maximum * 100:g} % lies within the interval: more text would "
                    "decide it (--eval_tokens, --eval_text).")
    return said


def failed(rows: list[dict]) -> bool:
    """Whether any row is over its gate."""
    return any(row.get("gate", {}).get("passed") is False for row in rows)
