"""The job behind `scenarios/dialogue.py`: the chats, held with and without the kept prefix."""

import dataclasses
import threading
import time

import numpy as np

from tfspeed import cli, cluster_job, engines
from tfspeed.devices import set_threads
from tfspeed.errors import TfspeedError
from tfspeed.main_job import Console, check_writable, read_calibration
from tfspeed.measure import metrics, report
from tfspeed.measure.environment import environment
from tfspeed.measure.progress import Progress
from tfspeed.models.load import load
from tfspeed.models.text_stream import StoppedText
from tfspeed.scenarios import conversations, tables
from tfspeed.scenarios.conversations import Conversation
from tfspeed.scenarios.dialogue import Options
from tfspeed.serving import backend as backends
from tfspeed.serving import bench, goodput, job
from tfspeed.serving.load import Call
from tfspeed.serving.request import Request
from tfspeed.serving.worker import Worker

# A chat that feels immediate, and one that is still bearable: ms to the first token, and a token.
LIMITS = ({"ttft": 500.0, "tpot": 30.0}, {"ttft": 2000.0, "tpot": 100.0})


@dataclasses.dataclass
class Turn:
    """One answer: what was read for it, what of that was kept, and when its tokens came."""

    number: int
    served: bench.Served
    reused: int
    answer: list[int]


def run(flags, options: Options) -> None:
    """Measures what the flags of `scripts/scenario.py` and the options say; writes and prints."""
    engines.check(flags.engine)
    backends.check(flags.engine)
    chats = chosen(options)
    check_writable(flags.output)
    data = read_calibration(flags)
    set_threads(flags.threads)
    strategy = cli.make_strategy(flags.strategy)
    if cluster_job.member_of(flags, strategy):
        raise TfspeedError("A dialogue is held by one process.", strategy=flags.strategy,
                           hint="Leave workers out: what they share out are rows of a batch.")
    rows = held(chats, options, flags.model, strategy, flags.engine, data, Progress())
    report.write_json(flags.output, environment(), rows)
    console = Console()
    for table in tables.dialogue(rows):
        console.print(table)
    console.print(f"Rows: {flags.output}", highlight=False, markup=False, soft_wrap=True)


def held(chats: list[Conversation], options: Options, model: str, strategy, engine: str,
         calibration: str | None, bar) -> list[dict]:
    """The rows of `measure`, for a model that is loaded and changed here."""
    with bar.task(f"loading and compiling {model}, {strategy.name}, {engine}", None):
        with strategy.scope():
            changed = strategy.apply(load(model), calibration)
        worker = Worker(backends.create(engine, changed, 0, options.at_once))
    try:
        job.warm_up(worker)
        rows = measure(worker, chats, options, bar)
    finally:
        worker.close()
    return [row | {"strategy": strategy.label} for row in rows]


def chosen(options: Options) -> list[Conversation]:
    """The conversations that the options ask for."""
    for name in ("new_tokens", "at_once", "repetitions"):
        if getattr(options, name) < 1:
            raise TfspeedError(f"dialogue_{name} must be at least 1.",
                               **{name: getattr(options, name)})
    return conversations.load(options.source, options.conversations, options.turns)


def measure(worker: Worker, chats: list[Conversation], options: Options, bar) -> list[dict]:
    """Runs all conversations with the prefix kept and without, in turn.

    Returns:
        Two rows. Names are vLLM's (`bench.summary`), over all turns; beside them `goodputs`, for
        each of `LIMITS` the good turns a second and their share; `by_turn`, of each turn its
        `prompt_tokens`, `reused_tokens`, `ttft_s`, `tpot_s`; in the row with the prefix kept,
        `ttft_speedup` over the other by turn, and `same_answers`.
    """
    if worker.backend.model.tokenizer is None:
        raise TfspeedError("A dialogue needs a tokenizer, and this model has none.",
                           model=worker.backend.model.name)
    turns: dict[bool, list[Turn]] = {True: [], False: []}
    seconds = {True: 0.0, False: 0.0}
    total = 2 * options.repetitions * len(chats)
    with bar.task("conversations", total) as advance:
        for number in range(options.repetitions):
            for kept in ((True, False), (False, True))[number % 2]:
                worker.keep(kept)
                start = time.perf_counter()
                turns[kept] += _all(worker, chats, options, advance)
                seconds[kept] += time.perf_counter() - start
            if not number and (left := (options.repetitions - 1) * sum(seconds.values())) > 60:
                bar.say(f"The other repetitions will take about {left / 60:.1f} minutes.")
    rows = [_row(worker, options, kept, turns[kept], seconds[kept]) for kept in (True, False)]
    rows[0]["ttft_speedup"] = [
        metrics.speedup(other["ttft_s"]["samples"], own["ttft_s"]["samples"])
        for own, other in zip(rows[0]["by_turn"], rows[1]["by_turn"], strict=True)]
    rows[0]["same_answers"] = _answers(turns[True]) == _answers(turns[False])
    return rows


def _all(worker, chats, options, advance) -> list[Turn]:
    """All conversations once, `at_once` side by side; each waits for its own answers."""
    waiting, found, failures = list(enumerate(chats)), {}, []

    def talk():
        while True:
            try:
                at, chat = waiting.pop(0)
            except IndexError:
                return
            try:
                found[at] = converse(worker, chat, options.new_tokens)
            except Exception as error:
                failures.append(error)
            advance()

    threads = [threading.Thread(target=talk, daemon=True) for _ in range(options.at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [turn for at in sorted(found) for turn in found[at]]


def converse(worker: Worker, chat: Conversation, new_tokens: int) -> list[Turn]:
    """One conversation. It ends early where it has outgrown the model's context."""
    tokenizer, target = worker.backend.model.tokenizer, bench.WorkerTarget(worker)
    messages = [{"role": "system", "content": chat.system}] if chat.system else []
    turns = []
    for number, said in enumerate(chat.turns):
        messages.append({"role": "user", "content": said})
        if tokenizer.chat_template:
            prompt = tokenizer.encode(tokenizer.chat(messages))
        else:  # a plain model continues what was said
            prompt = tokenizer.encode("\n".join(m["content"] for m in messages) + "\n")
        if len(prompt) + new_tokens > worker.backend.context_length:
            break
        request = Request(prompt, new_tokens, stop_tokens=frozenset(tokenizer.eos_ids),
                          text=StoppedText(tokenizer.decode))
        served = target.serve(request, Call(0.0, prompt, new_tokens))
        if served.error:
            raise TfspeedError("The model failed.", cause=served.error)
        answer = request.tokens[len(prompt):]
        turns.append(Turn(number, served, request.reused, answer))
        messages.append({"role": "assistant", "content": tokenizer.decode(answer)})
    if not turns:
        raise TfspeedError("The first turn does not fit into the model's context.",
                           conversation=chat.name, tokens=len(prompt) + new_tokens,
                           context=worker.backend.context_length)
    return turns


def _row(worker, options: Options, kept: bool, turns: list[Turn], seconds: float) -> dict:
    served = [turn.served for turn in turns]
    row = {"scenario": "dialogue", "model": worker.backend.model.name,
           "engine": worker.backend.name, "prefix_cache": kept,
           "source": options.source, "conversations": options.conversations,
           "at_once": options.at_once, "repetitions": options.repetitions,
           "new_tokens": options.new_tokens, **bench.summary(served, seconds, {})}
    row["goodputs"] = goodput.of(served, seconds, LIMITS)
    row["reused_tokens"] = sum(turn.reused for turn in turns)
    row["by_turn"] = [_by_turn([t for t in turns if t.number == number], number)
                      for number in sorted({turn.number for turn in turns})]
    return row


def _by_turn(turns: list[Turn], number: int) -> dict:
    told = {"turn": number + 1, "answers": len(turns),
            "prompt_tokens": float(np.mean([len(t.served.call.prompt) for t in turns])),
            "reused_tokens": float(np.mean([t.reused for t in turns])),
            "ttft_s": metrics.summary([t.served.times[0] - t.served.sent for t in turns])}
    gaps = [(t.served.times[-1] - t.served.times[0]) / (t.served.tokens - 1) for t in turns
            if t.served.tokens > 1]
    return told | ({"tpot_s": metrics.summary(gaps)} if gaps else {})


def _answers(turns: list[Turn]) -> list[list[int]]:
    return sorted(turn.answer for turn in turns)
