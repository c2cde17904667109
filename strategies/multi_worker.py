"""A copy of the model in every worker process, on one host or many; the requests are shared out.

What changes: variables are made by MultiWorkerMirroredStrategy, over the cluster of TF_CONFIG (the
chief's values go to all); the rows of a batch are split over the workers, each generates its own
with its own engine, whichever that is, and the chief gathers the tokens in order. An
encoder–decoder's sources go with their rows: each worker encodes its own. Training
(`multi_worker+distill`) adds up gradients over all workers.
Why it is faster: workers work at once. W workers with cores and memory of their own give up to W
times the output tokens per second of a batch.
When it is not: one request uses one worker. Workers of one machine share its memory bus.
What it costs: memory for a copy of the weights on each worker; a few milliseconds for every
gathering; sources (a megabyte a window of sound) travel to the workers. When a worker dies all are
started again (`--restarts`).
Exact: yes, the same tokens as on one device.
Source: https://www.tensorflow.org/guide/distributed_training#multiworkermirroredstrategy
"""

import copy
import dataclasses

from strategies.base import Strategy, option
from tfspeed.engines.workers import WorkersEngine
from tfspeed.errors import TfspeedError
from tfspeed.models.language_model import Placement


@dataclasses.dataclass(frozen=True)
class Options:
    chunk: int = option(16, "tokens that each worker generates before all are gathered; the "
                            "first is gathered at once")


class Workers(Placement):
    """Whole generations are shared out over processes; functions run in each by themselves."""

    def __init__(self, member, chunk: int):
        self.member, self.strategy, self._chunk = member, member.strategy, chunk

    def engine(self, made):
        return WorkersEngine(made, self.member, self._chunk)

    def agree(self, facts):
        self.member.agree(facts)

    @property
    def writes(self):
        return self.member.is_chief


class MultiWorker(Strategy):
    name = "multi_worker"
    Options = Options
    deploys = True

    def __init__(self, options=None):
        super().__init__(options)
        if self.options.chunk < 1:
            raise TfspeedError("multi_worker_chunk must be at least 1.",
                               multi_worker_chunk=self.options.chunk)

    @property
    def member(self):
        """This process in its cluster, which it joins when this is first asked for."""
        from tfspeed.cluster.member import member
        return member()

    def scope(self):
        return self.member.strategy.scope()

    def apply(self, model, data=None):
        model = copy.copy(model)
        model.placement = Workers(self.member, self.options.chunk)
        return model

    def report(self):
        count = self.member.count
        return [f"{count} worker{'s' if count > 1 else ''}, each a process with a copy of the "
                "weights. Workers raise throughput, never batch-1 latency: one request runs on "
                "one worker."]
