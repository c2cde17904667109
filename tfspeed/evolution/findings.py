"""What the figures of a run say, in sentences: each is made of its numbers alone."""

from collections.abc import Sequence

from tfspeed.measure import metrics

_SAME = 1.05  # a lead of less is none, and what changes by less stays


def findings(rows: Sequence[dict]) -> list[str]:
    """One sentence or two on training, decoding, reading a prompt, and quality."""
    told = [
        _over(rows, "Training, tokens/s", "training", "length", "tokens_per_s", "step_s"),
        _over(rows, "Decoding, tokens/s", "decode", "context", "decode_tokens_per_s", "tpot_s"),
        _states(rows),
        _over(rows, "Reading a prompt, tokens/s", "decode", "context", "prefill_tokens_per_s",
              "ttft_s"),
        _quality(rows)]
    return [sentence for sentence in told if sentence]


def leaders(rows: Sequence[dict], part: str, key: str, value: str, time: str,
            ) -> list[tuple[int, str]]:
    """Who is first at each size, `(size, names)`: all that are less than 5 % behind, or by no more
    than repeated runs differ (95 %)."""
    found = []
    for i, entry in enumerate(rows[0].get(part, ())):
        best = max((row[part][i] for row in rows), key=lambda e: e[value])
        found.append((entry[key], " and ".join(
            row["model"] for row in rows if _SAME * row[part][i][value] > best[value]
            or _alike(row[part][i][time]["samples"], best[time]["samples"]))))
    return found


def _alike(slower: Sequence[float], faster: Sequence[float]) -> bool:
    low = metrics.speedup(slower, faster).get("low")
    return low is not None and low <= 1


def _over(rows, what: str, part: str, key: str, value: str, time: str) -> str:
    entries = rows[0].get(part)
    if not entries:
        return ""
    first, last = entries[0][key], entries[-1][key]
    each = []
    for row in rows:
        begin, end = (row[part][i][value] for i in (0, -1))
        each.append(f"{row['model']} {begin:,.0f}" if first == last else
                    f"{row['model']} {begin:,.0f} → {end:,.0f} ({_change(end / begin)})")
    span = f"at {key} {first}" if first == last else f"from {key} {first} to {last}"
    return f"{what}, {span}: {', '.join(each)}. " + _first(
        leaders(rows, part, key, value, time), key)


def _change(ratio: float) -> str:
    return f"{ratio:.2f}x" if not 1 / _SAME < ratio < _SAME else "the same"


def _first(places: list[tuple[int, str]], key: str) -> str:
    """Neighbouring sizes with the same leader as one."""
    spans: list[list] = []
    for size, name in places:
        if spans and spans[-1][0] == name:
            spans[-1][2] = size
        else:
            spans.append([name, size, size])

    def told(name, low, high):
        sizes = f"{key} {low}" if low == high else f"{key} {low} to {high}"
        return f"{name} at {sizes}"

    return ("First (within 5 %, or what runs differ by): "
            f"{', '.join(told(*span) for span in spans)}.")


def _states(rows) -> str:
    entries = rows[0].get("decode")
    if not entries:
        return ""
    each = []
    for row in rows:
        begin, end = (row["decode"][i]["state_bytes"] / 1e3 for i in (0, -1))
        each.append(f"{row['model']} {begin:,.1f} kB" + (
            f" → {end:,.1f} kB" if end != begin else " at any length"))
    return f"What a step reads beside the weights: {', '.join(each)}."


def _quality(rows) -> str:
    ranked = sorted((row for row in rows if "perplexity" in row), key=lambda r: r["perplexity"])
    if not ranked:
        return ""
    each = ", ".join(f"{row['model']} {row['perplexity']:.2f} ({row['trained_tokens']:,} tokens in "
                     f"{row['trained_s']:.0f} s)" for row in ranked)
    return f"Perplexity a byte on unseen text, the best first: {each}."
