"""The job behind `scripts/stream.py`: a source, a pipeline, a model, results as they come."""

import json
import sys

from tfspeed.engines.sampling import Sampling
from tfspeed.errors import TfspeedError
from tfspeed.interrupt import deferred_interrupt
from tfspeed.measure.progress import Progress
from tfspeed.serving import job as serving
from tfspeed.streams import sources
from tfspeed.streams.inbox import Inbox, dataset, events
from tfspeed.streams.partials import Partial, Partials


def run(flags) -> int | None:
    """Does what the flags of `scripts/stream.py` say; returns an exit code."""
    for name in ("new_tokens", "queue"):
        if flags[name].value < 1:
            raise TfspeedError(f"--{name} must be at least 1.", **{name: flags[name].value})
    if flags.idle_s < 0:
        raise TfspeedError("--idle_s must be 0 (never) or more.", idle_s=flags.idle_s)
    sampling, inbox = Sampling(flags.temperature, seed=flags.seed), Inbox(flags.queue, flags.latest)
    bar = Progress()
    # Before the model is loaded: a missing file is told at once, early lines wait.
    words, worker, failed = sources.start(flags.source, inbox, flags.idle_s), None, False
    try:
        worker = serving.start(flags, bar)
        if worker.backend.model.tokenizer is None:
            raise TfspeedError("Text needs a tokenizer, and this model has none.",
                               model=worker.backend.model.name)
        bar.say(f"{worker.backend.model.name} on {worker.backend.name} reads {words}. Ctrl-C stops "
                "it.")
        made = Partials(worker, flags.new_tokens, sampling, inbox.drop)
        with deferred_interrupt() as interrupted:
            for partial in made.results(events(dataset(inbox), interrupted)):
                failed |= bool(partial.error)
                show(partial, flags.json)
    finally:
        inbox.close()
        if worker is not None:
            worker.close()
    if failed and not flags.source.startswith(("tcp:", "dir:")):
        return 2
    return None


def show(partial: Partial, as_json: bool) -> None:
    """Prints a result; what is wrong with a stream goes to stderr."""
    if as_json:
        print(json.dumps(vars(partial), ensure_ascii=False), flush=True)
    elif partial.error:
        print(f"error: {partial.stream}: {partial.error}.", file=sys.stderr, flush=True)
    else:
        mark = "=" if partial.end else "~"
        text = partial.text.strip().replace("\n", " ")
        print(f"{partial.stream} {mark}{partial.revision} [{partial.read} tokens, {partial.reused} "
              f"kept, {1e3 * partial.first_s:.0f} ms] {text}", flush=True)
