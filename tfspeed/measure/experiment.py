"""Measures models side by side: load, compile, interleaved repetitions, quality, one row each."""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil

from tfspeed import gate
from tfspeed.affinity import pinned, widened
from tfspeed.cluster.addresses import from_environment
from tfspeed.costs.energy import Meter
from tfspeed.costs.rows import with_prediction
from tfspeed.devices import default_device
from tfspeed.engines import create as create_engine
from tfspeed.engines.base import bucket
from tfspeed.errors import TfspeedError
from tfspeed.measure import metrics, quality, tasks
from tfspeed.measure import profile as profiles
from tfspeed.measure.bandwidth import memory_bandwidth
from tfspeed.measure.memory import PeakMemory
from tfspeed.measure.progress import Progress
from tfspeed.models.language_model import LanguageModel, check_fits
from tfspeed.models.load import load

EVAL_TEXT = Path(__file__).parents[1] / "data" / "eval_text.txt"
_DEFAULT_TOKENS = 128
_WINDOW = 256
EVAL_TOKENS = 4096  # of the evaluation text, by default: seconds
TASK_QUESTIONS = 20


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is timed: `batch` prompts of `prompt_tokens`, `new_tokens` each, greedy, no early stop.

    `prompt_tokens` and `new_tokens` are 128 where None, or less in a model whose context is too
    short for that.
    """

    prompt_tokens: int | None = None
    new_tokens: int | None = None
    batch: int = 1
    repetitions: int = 5

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value is not None and value < 1:
                raise TfspeedError(f"--{name} must be at least 1.", **{name: value})

    def fitted(self, model: LanguageModel) -> "Workload":
        """The workload with its defaults filled in, checked against the model's context."""
        half = max(1, min(_DEFAULT_TOKENS, model.context_length // 2))
        fitted = dataclasses.replace(self, prompt_tokens=self.prompt_tokens or half,
                                     new_tokens=self.new_tokens or half)
        check_fits(model, fitted.prompt_tokens, fitted.new_tokens)
        return fitted


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What quality is measured on, and where a row fails. Bad values raise TfspeedError.

    Attributes:
        eval_tokens: of the evaluation text, in whole windows of 256; 0: all that it has.
        task_questions: of the small task, see `tasks`; 0: none.
        max_perplexity_increase: a fraction; None: what the strategy and the engine declare.
    """

    eval_tokens: int = EVAL_TOKENS
    task_questions: int = TASK_QUESTIONS
    max_perplexity_increase: float | None = None

    def __post_init__(self):
        if self.eval_tokens < 0 or self.eval_tokens == 1:  # one token predicts nothing
            raise TfspeedError("--eval_tokens must be at least 2, or 0 for the whole text.",
                               eval_tokens=self.eval_tokens)
        if self.task_questions < 0:
            raise TfspeedError("--task_questions must be 0 or more.",
                               task_questions=self.task_questions)
        gate.check_limit(self.max_perplexity_increase)


@dataclasses.dataclass
class Candidate:
    """One model made ready by `prepare`, and what has been measured of it so far."""

    strategy: str
    engine: object
    workload: Workload
    prompts: list[list[int]]
    load_s: float
    compile_s: float
    peak_rss_bytes: int
    runtime_rss_bytes: int
    notes: list[str]
    max_perplexity_increase: float = gate.EXACT
    cores: int = 0  # those that its timed generations may use; 0: all
    timings: list[metrics.Timing] = dataclasses.field(default_factory=list)
    tokens: np.ndarray | None = None
    steady: bool = True  # whether every timed generation gave these tokens
    counted: dict = dataclasses.field(default_factory=dict)  # see `Engine.counted`
    quality: dict = dataclasses.field(default_factory=dict)
    gate: dict = dataclasses.field(default_factory=dict)
    profile: dict | None = None
    bandwidth: float | None = None  # GB/s, read beside the timing
    energy: Meter = dataclasses.field(default_factory=Meter)  # of the timed generations

    @property
    def model(self) -> LanguageModel:
        return self.engine.model


def prepare(model, strategy, engine: str, workload: Workload, text: str,
            dtype: str = "float32", others: Sequence[Candidate] = (),
            calibration: str | None = None) -> Candidate:
    """Loads a model inside a strategy's scope, applies the strategy, compiles, warms up.

    `peak_rss_bytes` is what a process with this model alone would peak at: the process's memory
    without the models of `others`, plus the growth while this one was loaded and first run. (All
    models of a run lie in one process, so a plain maximum would count them all.)

    Args:
        text: prompts and quality are taken from it.
        calibration: text that the strategy may learn from; None: the project's own.
    """
    runtime = others[0].runtime_rss_bytes if others else psutil.Process().memory_info().rss
    with PeakMemory() as memory:
        start = time.perf_counter()
        with strategy.scope():
            loaded = strategy.apply(load(model, dtype), calibration)
        load_s = time.perf_counter() - start
        workload = workload.fitted(loaded)
        check_memory(loaded, workload, in_place=engine.partition(":")[0] in ("litert", "fused"))
        # Also what is used only later is looked at before the clock starts.
        prompts = measured_prompts(loaded, workload, text)
        text_windows(loaded, text)
        start = time.perf_counter()
        made = create_engine(engine, loaded)
        time_generation(made, prompts, workload.new_tokens, limit=2)
        compile_s = time.perf_counter() - start
    notes = [*loaded.notes, *strategy.report(), *made.notes]
    if workload.batch % made.row_shares:
        notes.append(f"A batch of {workload.batch} leaves replicas without work of their own: "
                     f"make --batch a multiple of {made.row_shares}.")
    return Candidate(strategy.label, made, workload, prompts, load_s,
                     compile_s=compile_s,
                     peak_rss_bytes=runtime + memory.peak_rss - memory.start_rss,
                     runtime_rss_bytes=runtime, notes=notes,
                     max_perplexity_increase=gate.limit(strategy, engine, dtype))


def check_memory(model: LanguageModel, workload: Workload, in_place: bool) -> None:
    """Refuses a workload whose state and logits alone are more than the memory that is left.

    Args:
        in_place: whether the engine keeps one state; others hold the old one and the new.
    """
    if default_device().startswith("GPU"):
        return
    batch = workload.batch
    context = bucket(workload.prompt_tokens + workload.new_tokens)
    state = model.step_bytes(batch, context) - model.step_bytes(batch, 0)
    needed = state * (1 if in_place else 2) + 4 * batch * model.vocabulary_size
    free = psutil.virtual_memory().available
    if needed > free:
        raise TfspeedError(
            "A batch of this size does not fit in memory: its caches and logits alone are larger.",
            batch=batch, needed_gb=round(needed / 1e9, 1), available_gb=round(free / 1e9, 1),
            hint="Use a smaller --batch, --prompt_tokens or --new_tokens.")


def measured_prompts(model: LanguageModel, workload: Workload,
                     text: str) -> list[list[int]]:
    """One prompt a row: consecutive stretches of the text; random ids without a tokenizer."""
    length = workload.prompt_tokens
    if model.tokenizer is None:
        ids = np.random.default_rng(0).integers(0, model.vocabulary_size,
                                                workload.batch * length).tolist()
    else:
        ids = model.tokenizer.encode(text)
    starts = [(row * length) % max(1, len(ids) - length + 1) for row in range(workload.batch)]
    prompts = [ids[start:start + length] for start in starts]
    if len(prompts[0]) < length:
        raise TfspeedError("The text is shorter than one prompt.", prompt_tokens=length,
                           text_tokens=len(ids), hint="Use a longer --eval_text.")
    return prompts


def time_generation(engine, prompts, new_tokens: int, limit: int | None = None,
                    collect: list | None = None) -> metrics.Timing:
    """One generate call on the host's clock, a time for each token (of all rows)."""
    start, times = time.perf_counter(), []
    for tokens in engine.generate(prompts, new_tokens):
        times.append(time.perf_counter())
        if collect is not None:
            collect.append(tokens)
        if limit and len(times) == limit:
            break
    return metrics.Timing(start, times)


def repeat(candidates: list[Candidate]) -> Iterator[float]:
    """Times the candidates in turn, `repetitions` times; yields seconds of each call.

    Interleaved, the order turned round every time, so that a machine that slows down or warms up
    does so for all. The first round is a warm-up and leaves no timing.
    """
    for round_number in range(candidates[0].workload.repetitions + 1):
        for candidate in candidates[::-1 if round_number % 2 else 1]:
            collected: list = []
            if round_number == 1:
                candidate.engine.start_counting()
            counting = candidate.energy if round_number else contextlib.nullcontext()
            with pinned(candidate.cores), counting:
                timing = time_generation(candidate.engine, candidate.prompts,
                                         candidate.workload.new_tokens, collect=collected)
            if round_number:
                candidate.timings.append(timing)
                candidate.counted = candidate.engine.counted()
            made = np.stack(collected, axis=1)
            if candidate.timings[1:]:
                candidate.steady &= np.array_equal(made, candidate.tokens)
            candidate.tokens = made
            yield timing.token_s[-1] - timing.start_s


def interrupted(candidates: Sequence[Candidate]) -> str:
    """What Ctrl-C is answered with."""
    if any(candidate.timings for candidate in candidates):
        return "Interrupted: the report below holds what was measured so far."
    return "Interrupted before anything was measured."


def evaluate(candidates: list[Candidate], text: str, bar: Progress,
             settings: Evaluation | None = None, reference=None) -> None:
    """Fills in the quality and the gate of every candidate against the first, the float32
    baseline, or against another `score` function."""
    settings = settings or Evaluation()
    reference = reference or candidates[0].engine.score
    model = candidates[0].model
    windows, note = text_windows(model, text, settings.eval_tokens)
    questions, task_note = task_questions(model, settings.task_questions)
    compared = [quality.Comparison() for _ in candidates]
    answers: list[list[int]] = [[] for _ in candidates]
    base_answers = []
    with bar.task("quality", len(windows) + len(questions)) as advance:
        start = time.perf_counter()
        for number, window in enumerate(windows):
            logits = reference(window[None])
            for candidate, comparison in zip(candidates, compared, strict=True):
                score = candidate.engine.score
                comparison.add(window, logits,
                               logits if score == reference else score(window[None]))
            advance()
            if number == 1:  # the first one compiles
                tokens = windows[2:].size + sum(question.rows.size for question in questions)
                _say_estimate(bar, (time.perf_counter() - start) / window.size * tokens)
            start = time.perf_counter()
        for question in questions:
            base_answers.append(question.answer(reference))
            for candidate, given in zip(candidates, answers, strict=True):
                score = candidate.engine.score
                given.append(base_answers[-1] if score == reference else question.answer(score))
            advance()
    right = [question.question.answer for question in questions]
    for candidate, comparison, given in zip(candidates, compared, answers, strict=True):
        found = comparison.result()
        if note:
            for name in ("perplexity", "perplexity_delta", "perplexity_delta_interval"):
                found.pop(name)
        limit = settings.max_perplexity_increase
        limit = candidate.max_perplexity_increase if limit is None else limit
        if candidate.engine.score != reference:  # which would be compared with itself
            candidate.gate = gate.judge(found, limit)
        candidate.quality = found | tasks.result(right, given, base_answers)
        candidate.notes += [*gate.notes(found, candidate.gate), *filter(None, (note, task_note))]


def _say_estimate(bar: Progress, seconds: float) -> None:
    if seconds > 60:
        bar.say(f"Quality will take about {seconds / 60:.1f} minutes.")


def task_questions(model: LanguageModel, count: int) -> tuple[list[tasks.Encoded], str]:
    """The questions of the task in a model's tokens; where there are none, a note says why."""
    if not count or model.tokenizer is None:
        return [], ""
    questions = tasks.load(count)
    if not questions:
        return [], tasks.MISSING
    fitting = tasks.encoded(questions, model.tokenizer, model.context_length)
    return fitting, "" if fitting else (
        f"No task score: no question fits in a context of {model.context_length} tokens.")


def profile(candidates: list[Candidate], bar: Progress) -> None:
    """Fills in the profile of every candidate: one decode step after its prompts."""
    for candidate in candidates:
        with bar.task(f"profile of {candidate.strategy}, {candidate.engine.name}", None):
            engine = candidate.engine
            candidate.profile = profiles.summary(engine.profile(candidate.prompts),
                                                 engine.profile_source)


def text_windows(model: LanguageModel, text: str, tokens: int = EVAL_TOKENS):
    """int32 `[n, length]` of the text's first `tokens` (0: of all), and what is to be noted."""
    length = min(_WINDOW, model.context_length, tokens or _WINDOW)
    count = max(1, tokens // length) if tokens else len(text)  # more than there are
    if model.tokenizer is None:
        few = min(count, EVAL_TOKENS // _WINDOW // 4)
        ids = np.random.default_rng(1).integers(0, model.vocabulary_size, few * length)
        return (quality.text_windows(ids, length, few), "No tokenizer: quality is measured on "
                "random tokens, without perplexity and its gate.")
    ids = np.asarray(model.tokenizer.encode(text, add_bos=False), np.int32)
    if not model.tokenizer.add_bos:
        return quality.text_windows(ids, length, count), ""
    # A model that is used to a first token is lost without it: each window gets its own.
    windows = quality.text_windows(ids, length - 1, count)
    first = np.full((len(windows), 1), model.tokenizer.bos_id, np.int32)
    return np.concatenate([first, windows], axis=1), ""


def rows(candidates: list[Candidate], threads: int) -> list[dict]:
    """The record of every candidate that was timed at least once; the first is the baseline.

    Args:
        threads: how many an operator may use.
    """
    return [_row(c, candidates[0], threads) for c in candidates if c.timings]


def read_limits(candidates: Sequence[Candidate], threads: int) -> None:
    """Measures what memory gives for each candidate's steps: best right after the timing, since
    virtual machines share it with others."""
    for candidate in candidates:
        candidate.bandwidth = _bandwidth(candidate, threads)


def _threads(candidate: Candidate, threads: int) -> int:
    return min(threads, candidate.cores or threads)


def _step_bytes(candidate: Candidate) -> int:
    """Bytes of the weights and caches that a step reads, on all devices together."""
    workload, engine = candidate.workload, candidate.engine
    # Half of the new tokens is the mean context of a step beyond the prompt.
    context = workload.prompt_tokens + workload.new_tokens // 2
    shares = min(_active_replicas(engine, workload.batch), engine.row_shares)
    return shares * engine.step_bytes(-(-workload.batch // shares), context)


def _bandwidth(candidate: Candidate, threads: int) -> float:
    step_bytes = _step_bytes(candidate)
    active = _active_replicas(candidate.engine, candidate.workload.batch)
    if default_device().startswith("GPU"):  # each has a memory of its own; CPU devices share one
        return active * memory_bandwidth(threads, step_bytes)
    readers, machines = _readers(candidate, threads)
    with contextlib.nullcontext() if readers == _threads(candidate, threads) else widened():
        return machines * memory_bandwidth(readers, step_bytes // machines)


def _readers(candidate: Candidate, threads: int) -> tuple[int, int]:
    """Threads of this machine that read in a step, and machines that do; others are taken for
    like this one."""
    active = _active_replicas(candidate.engine, candidate.workload.batch)
    cluster = from_environment() if candidate.engine.on_workers and active > 1 else None
    threads = _threads(candidate, threads)
    if cluster is None:
        return threads, 1
    return min(os.cpu_count(), threads * cluster.neighbours), cluster.machines


def _row(candidate: Candidate, baseline: Candidate, threads: int) -> dict:
    model, workload = candidate.model, candidate.workload
    threads = _threads(candidate, threads)
    latency = metrics.latency(candidate.timings, workload.batch, workload.prompt_tokens)
    row = {
        "model": model.name, "parameters": model.parameters,
        "weights_bytes": candidate.engine.weights_bytes, "file_bytes": _file_bytes(model.source),
        "strategy": candidate.strategy, "engine": candidate.engine.name,
        "devices": list(candidate.engine.devices) or [default_device()], "threads": threads,
        "dtype": candidate.engine.dtype, "batch": workload.batch,
        "prompt_tokens": workload.prompt_tokens,
        "new_tokens": workload.new_tokens, "repetitions": len(candidate.timings),
        "load_s": candidate.load_s, "compile_s": candidate.compile_s, **latency,
        "peak_rss_bytes": candidate.peak_rss_bytes,
    }
    if latency.get("tpot_s"):
        step_bytes = _step_bytes(candidate)
        bandwidth = candidate.bandwidth or _bandwidth(candidate, threads)
        row |= {"step_bytes": step_bytes,
                "read_threads": math.prod(_readers(candidate, threads)),
                **metrics.roofline(step_bytes, latency["tpot_s"]["median"], workload.batch,
                                   bandwidth)}
    row |= candidate.counted | candidate.quality
    if candidate.gate:
        row["gate"] = candidate.gate
    if candidate is not baseline and baseline.timings:
        row["same_tokens"] = bool(candidate.steady and baseline.steady and np.array_equal(
            candidate.tokens, baseline.tokens))
        reference = metrics.latency(baseline.timings, workload.batch, workload.prompt_tokens)
        row["speedup"] = {
            name.removesuffix("_s"): metrics.speedup(reference[name]["samples"],
                                                     latency[name]["samples"])
            for name in ("ttft_s", "tpot_s", "e2e_s") if latency.get(name)}
    if candidate.profile:
        row["profile"] = candidate.profile
    found, said = with_prediction(row, candidate.engine, threads, baseline.model)
    energy = _energy(candidate)
    said = [said, candidate.energy.note(energy)]
    return row | found | energy | {"notes": [*candidate.notes, *filter(None, said)]}


def _energy(candidate: Candidate) -> dict:
    """What the timed generations took; {} where other processes worked as well, whose share an
    estimate would leave out."""
    if candidate.model.placement.engine is not None:
        return {}
    workload = candidate.workload
    return candidate.energy.reading(len(candidate.timings) * workload.batch * workload.new_tokens)


def _active_replicas(engine, batch: int) -> int:
    """Where rows are shared out, one row stays on one replica; more are filled up, by repeating
    one, to a share for all."""
    return 1 if batch == 1 and engine.row_shares > 1 else max(1, len(engine.devices))


def _file_bytes(source) -> int | None:
    if source is None or not os.path.exists(source):
        return None
    path = Path(source)
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(f.stat().st_size for f in files)
