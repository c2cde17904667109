"""The job behind `scripts/bench.py`: our engines and others, in turn, on the same weights."""

import math
import tempfile
from pathlib import Path

import numpy as np

from tfspeed import cli, engines, gate, peers
from tfspeed.devices import set_threads
from tfspeed.errors import TfspeedError
from tfspeed.main_job import (
    check_writable,
    evaluation,
    explicit,
    read_calibration,
    read_text,
    write_report,
)
from tfspeed.measure import experiment, metrics, tensorboard
from tfspeed.measure.bandwidth import memory_bandwidth
from tfspeed.measure.experiment import Candidate, Evaluation, Workload
from tfspeed.measure.progress import Progress
from tfspeed.models.hf_writer import save_hf_folder

_REFERENCE = "float32"  # among the tokens of the peers


def run(flags) -> int | None:
    """Does what the flags of `scripts/bench.py` say; returns an exit code."""
    names = [name for name in flags.peers.split(",") if name]
    unknown = [name for name in names if name not in peers.PEERS]
    if unknown:
        raise TfspeedError(f"--peers must be among {', '.join(peers.PEERS)}.", peers=flags.peers)
    workload = Workload(explicit(flags, "prompt_tokens"), explicit(flags, "new_tokens"),
                        flags.batch, flags.repetitions)
    settings = evaluation(flags)
    wanted = split_engines(flags.engines)
    for engine in wanted:
        engines.check(engine)
    tensorboard.check_logdir(flags.logdir)
    check_writable(flags.output)
    text, calibration = read_text(flags.eval_text), read_calibration(flags)
    threads, bar = set_threads(flags.threads), Progress()
    strategy = cli.make_strategy(flags.strategy)
    pythons = {name: peers.install(name, bar.say) for name in names}

    ours: list[Candidate] = []
    timed: dict[str, list[metrics.Timing]] = {}
    tokens: dict[str, list] = {}
    quality: dict[str, dict] = {}
    running: dict[str, peers.PeerProcess] = {}
    rows: list[dict] = []
    try:
        for engine in wanted:
            with bar.task(f"loading and compiling {flags.model}, {engine}", None):
                ours.append(experiment.prepare(flags.model, strategy, engine, workload, text,
                                               others=ours, calibration=calibration))
        if names:
            start_peers(running, pythons, ours[0].model, threads, bar)
        interleave(ours, running, timed, tokens, bar)
        experiment.read_limits(ours, threads)
        evaluate(ours, running, quality, tokens, text, bar, settings)
    except KeyboardInterrupt:
        bar.say(experiment.interrupted(ours))
        return cli.INTERRUPTED
    finally:
        for process in running.values():
            process.close()
        rows += all_rows(ours, running, timed, tokens, quality, threads)
        write_report(rows, flags)
    return cli.GATE_FAILED if gate.failed(rows) else None


def split_engines(names: str) -> list[str]:
    """The engines of `--engines`: separated by `;` where a format has rules of its own (`,`)."""
    found = [name for name in names.split(";" if ";" in names else ",") if name]
    if not found:
        raise TfspeedError("--engines must name at least one of our engines.", engines=names,
                           hint=f"Known: {', '.join(engines.ENGINES)}.")
    return found


def start_peers(running, pythons, model, threads, bar) -> None:
    """Hands our weights to every peer, as the GGUF file that they came from or as a Hugging Face
    folder, which it reads before it says that it is ready."""
    with tempfile.TemporaryDirectory() as folder, bar.task("starting peers", None):
        for name, python in pythons.items():
            peer, source = peers.PEERS[name], Path(folder)
            if peer.reads_gguf:
                source = Path(str(model.source))
                if source.suffix != ".gguf":
                    raise TfspeedError(f"The peer {name} needs a model from a GGUF file.",
                                       model=model.name, source=str(model.source))
            elif not any(source.iterdir()):
                save_hf_folder(model, folder)
            for variant in peer.variants:
                process = peers.PeerProcess(name, python, source, threads, variant)
                running[process.name] = process


def evaluate(ours, running, quality, tokens, text, bar,
             settings: Evaluation | None = None) -> None:
    """Quality of all, ours and theirs, against our float32 model, and its greedy tokens. The gate
    is for our rows: a peer's is measured, not judged."""
    settings = settings or Evaluation()
    reference = engines.create("xla", ours[0].model)
    with bar.task("tokens of the float32 model", None):
        tokens[_REFERENCE] = np.stack(list(reference.generate(
            ours[0].prompts, ours[0].workload.new_tokens)), axis=1)
    experiment.evaluate(ours, text, bar, settings, reference.score)
    windows, note = experiment.text_windows(ours[0].model, text, settings.eval_tokens)
    for name, process in running.items():
        loss = None if note else process.loss(windows.tolist())
        if loss is not None:
            base = ours[0].quality["baseline_perplexity"]
            quality[name] = {"perplexity": math.exp(loss), "baseline_perplexity": base,
                             "perplexity_delta": math.exp(loss) / base - 1}


def interleave(ours, running, timed, tokens, bar) -> None:
    """Our candidates and every peer in turn, as often as the workload says; first a warm-up."""
    workload, prompts = ours[0].workload, ours[0].prompts
    rounds = experiment.repeat(ours)
    with bar.task("timing", (workload.repetitions + 1) * (len(ours) + len(running))) as advance:
        for repetition in range(workload.repetitions + 1):
            for _ in ours:
                next(rounds)
                advance()
            for name, process in running.items():
                timing, tokens[name] = peer_timing(process, prompts, workload.new_tokens)
                if repetition:  # the first call compiles
                    timed.setdefault(name, []).append(timing)
                advance()


def peer_timing(process, prompts, new_tokens: int):
    """A peer's generate call as a `Timing`.

    The tokens of one that does not stream are taken as evenly spaced between its first one and
    its last. It reads its prompt padded to the whole length, so that its first token comes when a
    call with a prompt of that length, for one token, is over.
    """
    if process.streams:
        whole = process.call(prompts, new_tokens)
        return metrics.Timing(0.0, whole["token_s"]), whole["tokens"]
    count = len(prompts[0]) + new_tokens - 1
    padded = [(prompt * (1 + count // len(prompt)))[:count] for prompt in prompts]
    first = process.call(padded, 1)["seconds"]
    whole = process.call(prompts, new_tokens)
    times = np.linspace(first, max(first, whole["seconds"]), new_tokens)
    return metrics.Timing(0.0, times.tolist()), whole["tokens"]


def all_rows(ours, running, timed, tokens, quality, threads) -> list[dict]:
    """Peers first: speed-ups are over the first row."""
    mine = experiment.rows(ours, threads)
    if not mine:
        return []
    for row, candidate in zip(mine, (c for c in ours if c.timings), strict=True):
        row["same_tokens"] = candidate.steady and _same(candidate.tokens, tokens)
    rows = [peer_row(process, mine[0], ours[0], timed[name], tokens)
            | quality.get(name, {}) for name, process in running.items() if name in timed]
    rows += mine
    reference = rows[0]
    for row in rows:
        row.pop("speedup", None)
        if row is not reference:
            row["speedup"] = {
                key.removesuffix("_s"): metrics.speedup(reference[key]["samples"],
                                                        row[key]["samples"])
                for key in ("ttft_s", "tpot_s", "e2e_s") if row.get(key) and reference.get(key)}
    return rows


def _same(found, tokens) -> bool | None:
    """Whether tokens are those of the float32 model; None where that was not run."""
    if _REFERENCE not in tokens:
        return None
    return bool(np.array_equal(np.asarray(found), tokens[_REFERENCE]))


def peer_row(process, like: dict, ours: Candidate, timings, tokens) -> dict:
    """A peer's row: the same model and workload as ours, its own latencies."""
    same = ("model", "parameters", "threads", "batch", "prompt_tokens", "new_tokens", "devices")
    row = {key: like[key] for key in same}
    model, context = ours.model, row["prompt_tokens"] + row["new_tokens"] // 2
    row |= {"weights_bytes": model.weights_bytes, "dtype": model.dtype,  # what it was handed
            "step_bytes": model.step_bytes(row["batch"], context)}
    weights = process.started.get("weights_bytes")
    if weights:  # its own form of the weights; its cache holds 16-bit values, ours 32-bit ones
        cache = row["step_bytes"] - model.step_bytes(row["batch"], 0)
        row |= {"weights_bytes": weights, "dtype": process.variant.lower(),
                "step_bytes": weights + cache // 2}
    row |= {"strategy": process.name, "engine": "peer", "repetitions": len(timings),
            **metrics.latency(timings, row["batch"], row["prompt_tokens"]),
            "same_tokens": _same(tokens[process.name], tokens),
            "notes": [process.note]}
    if not process.streams:
        row.pop("itl_s", None)  # a peer that gives all tokens at once has no gaps to measure
    if "tpot_s" not in row:  # one new token: there is no step
        row.pop("step_bytes")
        return row
    return row | metrics.roofline(row["step_bytes"], row["tpot_s"]["median"], row["batch"],
                                  memory_bandwidth(row["threads"], row["step_bytes"]))
