"""The stages of a pipeline in a ring: threads of one process, or one stage in each worker.

The first stage is the caller's: it leads. Others answer messages until `end` has gone round.
"""

import os
import secrets
import threading

from tfspeed.cluster.member import Member
from tfspeed.dataflow import links
from tfspeed.dataflow.links import QueueLink, Receiver, Sender

END, ECHO, FAILED = "end", "echo", "failed"


def serve(stage, inbox, outbox) -> None:
    """Answers messages until the one that ends it, which is passed on as well.

    Args:
        stage: a `Stage` or `FusedStage`; None passes on what comes.
    """
    while True:
        header, arrays = inbox.get()
        if header["kind"] == END:
            if stage is not None:
                stage.forget()
            outbox.put(header)
            return
        if header["kind"] not in (ECHO, FAILED):
            header, arrays = stage(header, arrays)
        outbox.put(header, arrays)


class Threads:
    """`count` stages on threads of this process."""

    index = 0

    def __init__(self, count: int, depth: int):
        self.count, self.own = count, range(count)
        self._links = [QueueLink(depth) for _ in range(count)]  # each leads to the stage after
        self.inbox, self.outbox = self._links[-1], self._links[0]
        self._threads: list[threading.Thread] = []

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"stage {i}" for i in range(self.count))

    def share(self, message) -> list:
        """What each stage's processor has to say: they are all one."""
        return [message] * self.count

    def tell(self, request: dict) -> None:
        """There is nobody else."""

    def start(self, stages: list) -> None:
        """The other stages begin to answer."""
        self._threads = [threading.Thread(target=self._serve, args=(i, stages[i]), daemon=True)
                         for i in range(1, self.count)]
        for thread in self._threads:
            thread.start()

    def ended(self) -> None:
        """Waits for them, once `end` has gone round."""
        for thread in self._threads:
            thread.join()

    def _serve(self, i: int, stage) -> None:
        inbox, outbox = self._links[i - 1], self._links[i]
        try:
            serve(stage, inbox, outbox)
        except Exception as error:  # for the leader to raise
            outbox.put({"kind": FAILED}, [error])
            serve(None, _Ignoring(inbox), outbox)
            stage.forget()


class _Ignoring:
    """What reaches a stage that failed: everything but the end is dropped."""

    def __init__(self, inbox):
        self._inbox = inbox

    def get(self):
        while True:
            header, arrays = self._inbox.get()
            if header["kind"] in (END, FAILED):
                return header, arrays


class Workers:
    """One stage in each worker of a cluster, connected by TCP. Made by all of them at once."""

    def __init__(self, member: Member, depth: int):
        self._member = member
        self.count, self.index, self.own = member.count, member.index, (member.index,)
        own = member.cluster.addresses[member.index].rpartition(":")[0]
        listening = links.listen(os.environ.get("TFSPEED_BIND", "0.0.0.0"))
        port = listening.getsockname()[1]
        token = member.tell(secrets.token_hex(16))
        addresses = member.share(f"{own}:{port}")
        following = (self.index + 1) % self.count
        self.outbox = Sender(links.connect(addresses[following], token))
        self.inbox = Receiver(links.accept(listening, token), depth)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"worker {i}" for i in range(self.count))

    def share(self, message) -> list:
        """What JSON can hold, of every worker, to all."""
        return self._member.share(message)

    def tell(self, request: dict | None = None) -> dict | None:
        """The leader's request, to all."""
        return self._member.tell(request)

    def start(self, stages: list) -> None:
        """The other workers begin to answer."""
        self.tell({"do": "serve"})

    def ended(self) -> None:
        """They wait for the next request."""
