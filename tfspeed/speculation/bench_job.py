"""What drafts bring on prompts whose answers copy, and cost on others; behind `bench_drafts.py`."""

import json
import statistics
import time
from pathlib import Path

import rich.box
import rich.table

from tfspeed import cli, engines
from tfspeed.devices import set_threads
from tfspeed.errors import TfspeedError
from tfspeed.main_job import Console, check_writable
from tfspeed.measure import metrics, report
from tfspeed.measure.environment import environment
from tfspeed.measure.progress import Progress
from tfspeed.models.load import load

PROMPTS = Path(__file__).parents[1] / "data" / "drafted_prompts.json"


def run(flags) -> None:
    """Does what the flags of `scripts/bench_drafts.py` say."""
    for name in ("new_tokens", "repetitions"):
        if flags[name].value < 1:
            raise TfspeedError(f"--{name} must be at least 1.", **{name: flags[name].value})
    engines.check(flags.engine)
    check_writable(flags.output)
    groups = read_prompts(flags.prompts)
    set_threads(flags.threads)
    strategy, bar, console = cli.make_strategy(flags.strategy), Progress(), Console()
    with bar.task(f"loading and compiling {flags.model}, {flags.engine}", None), strategy.scope():
        drafting = strategy.apply(load(flags.model), None)
        if drafting.speculation is None:
            raise TfspeedError("--strategy must make drafts.", strategy=flags.strategy,
                               hint="Use --strategy=speculative.")
        if drafting.tokenizer is None:
            raise TfspeedError("Prompts need a tokenizer, and this model has none.",
                               model=drafting.name)
        made = engines.create(flags.engine, drafting)
    rows = []
    try:
        for group, prompts in groups.items():
            with bar.task(group, len(prompts) * (flags.repetitions + 1)) as advance:
                rows += [measure(made, group, prompt, flags, advance) for prompt in prompts]
    finally:
        report.write_json(flags.output, environment(), rows)
        if rows:
            console.print(table(made.name, rows))


def read_prompts(path: str | None) -> dict[str, list[str]]:
    """Prompts by the name of their group."""
    try:
        groups = json.loads(Path(path or PROMPTS).read_text(encoding="utf-8"))
        fine = bool(groups) and all(isinstance(name, str) and prompts and all(
            isinstance(p, str) and p.strip() for p in prompts) for name, prompts in groups.items())
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise TfspeedError("--prompts must be a readable JSON file.", prompts=path,
                           cause=str(error)) from error
    if not fine:
        raise TfspeedError("--prompts must hold {group: [prompt, …]}, as "
                           "tfspeed/data/drafted_prompts.json does.", prompts=path)
    return groups


def measure(engine, group: str, prompt: str, flags, advance) -> dict:
    """Times an answer with drafts and without, in turn; the first round is a warm-up. It ends where
    the model ends it: what comes after is no answer to the prompt, and copies nothing."""
    tokenizer = engine.model.tokenizer
    if tokenizer.chat_template:
        prompt = tokenizer.chat([{"role": "user", "content": prompt}])
    ids = tokenizer.encode(prompt)
    seconds, tokens = {"plain": [], "drafts": []}, {}
    sides = [("plain", engine.inner), ("drafts", engine)]
    for i in range(flags.repetitions + 1):
        if i == 1:
            engine.start_counting()
        for name, side in sides[::-1 if i % 2 else 1]:
            times, found = [], []
            for row in side.generate([ids], flags.new_tokens, stop_tokens=tokenizer.eos_ids):
                times.append(time.perf_counter())
                found.append(int(row[0]))
            if i:
                seconds[name].append((times[-1] - times[0]) / max(1, len(times) - 1))
            tokens[name] = found
        advance()
    return {"group": group, "prompt": prompt[:80], "prompt_tokens": len(ids),
            "new_tokens": len(tokens["plain"]), "same_tokens": tokens["plain"] == tokens["drafts"],
            "tpot_s": metrics.summary(seconds["drafts"]),
            "plain_tpot_s": metrics.summary(seconds["plain"]),
            "speedup": metrics.speedup(seconds["plain"], seconds["drafts"]), **engine.counted()}


def _seconds(rows: list[dict], name: str) -> float:
    """What all answers took, after their first tokens."""
    return sum(row[name]["median"] * (row["new_tokens"] - 1) for row in rows)


def table(engine: str, rows: list[dict]) -> rich.table.Table:
    """A line a prompt, and one for each group: the ratio of all its time."""
    made = rich.table.Table("", "tokens", "plain ms", "drafts ms", "speed-up", "accepted", "a pass",
                            "same", title=f"{engine}, TPOT", title_justify="left",
                            box=rich.box.SIMPLE_HEAD)
    for group in dict.fromkeys(row["group"] for row in rows):
        chosen = [row for row in rows if row["group"] == group]
        for row in chosen:
            ratio, accepted = row["speedup"], row["draft_acceptance"]
            made.add_row(
                group, str(row["new_tokens"]), f"{row['plain_tpot_s']['median'] * 1e3:.2f}",
                f"{row['tpot_s']['median'] * 1e3:.2f}",
                f"{ratio['ratio']:.2f}x" + (f" ({ratio['low']:.2f}–{ratio['high']:.2f})"
                                            if ratio["low"] else ""),
                "–" if accepted is None else f"{accepted:.0%}", f"{row['tokens_per_pass']:.2f}",
                "yes" if row["same_tokens"] else "NO")
        ratios = [row["speedup"]["ratio"] for row in chosen]
        whole = _seconds(chosen, "plain_tpot_s") / _seconds(chosen, "tpot_s")
        made.add_row(f"{group}: all", "", "", "", f"{whole:.2f}x",
                     f"median {statistics.median(ratios):.2f}x", f"least {min(ratios):.2f}x", "",
                     style="bold", end_section=True)
    return made
