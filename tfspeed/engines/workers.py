"""One engine in every worker process, each on its own rows; the chief gathers the tokens.

What is shared out is the call of `generate`, not its functions, so that every engine can be the
one inside. Workers generate without a word to each other and meet once in `chunk` tokens (after
the first one at once): a collective takes milliseconds, so one a token would cost more than a
small model's step. All times are the chief's, of tokens that it has: the slowest worker and the
network are in them. Within a chunk tokens arrive together, so single gaps (`itl_s`) mean little.

Where the model itself is spread over the workers (`multi_worker+tensor_parallel`) all of them
generate all rows, step by step together; they meet in the same chunks, to hear whether the chief's
caller wants more.
"""

import dataclasses
from collections import deque
from itertools import islice

import numpy as np

from tfspeed.cluster.member import Member
from tfspeed.digest import digest
from tfspeed.engines.base import FINISHED, Engine
from tfspeed.engines.sampling import Sampling
from tfspeed.engines.wrapping import Wrapping
from tfspeed.errors import TfspeedError


class WorkersEngine(Wrapping):
    """The chief calls `generate`, all others `serve`. To be made by all, who must have the same
    weights.

    One generation at a time. A single row is the chief's own, and is streamed as it comes.
    """

    def __init__(self, inner: Engine, member: Member, chunk: int):
        super().__init__(inner)
        self.member, self.chunk = member, chunk
        self.together = inner.model.placement.exchanges
        self.notes += [
            f"Tokens are gathered {chunk} at a time, the first one at once. Times are the chief's "
            "clock when it has the tokens of all workers; single gaps (itl_s) are of bursts. "
            "Quality is measured by " + ("all workers together." if self.together else
                                         "the chief, whose weights all workers have.")]
        self._busy = False
        if not self.together:  # else each holds weights of its own
            member.agree({"weights": digest(v.numpy() for v in inner.model.keras_model.weights)})

    @property
    def devices(self):
        return tuple(f"worker {i}" for i in range(self.member.count))

    @property
    def row_shares(self):
        return 1 if self.together else self.member.count

    def score(self, tokens):
        if self.together:
            self.member.tell({"scored": np.asarray(tokens).tolist()})
        return self.inner.score(tokens)

    def serve(self) -> None:
        """Takes part in the chief's generations until it tells None."""
        while (request := self.member.tell()) is not None:
            if "scored" in request:
                self.inner.score(np.asarray(request["scored"], np.int32))
                continue
            sampling = Sampling(**request.pop("sampling"))
            for _ in self._shared(**request, sampling=sampling):
                pass

    def _generate(self, prompts, new_tokens, sampling, stop_tokens):
        if self.member.count == 1 or (len(prompts) == 1 and not self.together):
            yield from self.inner.generate(prompts, new_tokens, sampling, stop_tokens)
            return
        if self._busy:
            raise TfspeedError("Workers run one generation at a time.",
                               hint="Close the other one first.")
        self._busy = True
        try:
            self.member.tell({"prompts": prompts, "new_tokens": new_tokens,
                              "sampling": dataclasses.asdict(sampling),
                              "stop_tokens": np.asarray(stop_tokens).tolist()})
            yield from self._shared(prompts, new_tokens, stop_tokens, sampling)
        finally:
            self._busy = False

    def _shared(self, prompts, new_tokens, stop_tokens, sampling):
        """This worker's part of a generation; yields the tokens of all rows, on every worker."""
        rows = np.arange(len(prompts))
        shares = np.array_split(rows, self.member.count)
        mine = shares[self.member.index]
        if self.together:  # the chief's word is enough
            shares, mine = [rows] + [rows[:0]] * (self.member.count - 1), rows
        tokens = iter(())
        if len(mine):
            tokens = self.inner.generate([prompts[row] for row in mine], new_tokens,
                                         sampling.shifted(int(mine[0])), stop_tokens)
        finished = np.zeros(len(prompts), bool)
        count, size, wanted = 0, 1, False
        try:
            while count < new_tokens:
                wanted = False
                made = self._gather(islice(tokens, size), size, shares)
                if made is None:  # the chief's caller has had enough
                    return
                count, size = count + size, min(self.chunk, new_tokens - count - size)
                columns = []
                for column in made.T:
                    if finished.all():
                        break
                    columns.append(column)
                    finished |= np.isin(column, stop_tokens) | (column == FINISHED)
                wanted = size > 0 and not finished.all()
                yield from columns
                if finished.all():
                    return
        except GeneratorExit:
            if wanted:  # the others are at their next chunk, and will ask for it
                if self.together:
                    deque(islice(tokens, size), maxlen=0)  # they cannot make it alone
                self._gather(None, size, shares)
            raise

    def _gather(self, tokens, size, shares):
        """int32 `[rows, size]` of all workers' next tokens; None where the chief gives none."""
        sent = np.full((1 + len(shares[0]), size), FINISHED, np.int32)  # the first share is widest
        sent[0, 0] = tokens is not None
        for column, row in enumerate(tokens or ()):
            row = row[:len(shares[self.member.index])]
            sent[1:1 + len(row), column] = row
        rows = self.member.all_gather(sent.reshape(-1)).reshape(self.member.count, *sent.shape)
        if not rows[0, 0, 0]:
            return None
        return np.concatenate([part[1:1 + len(share)]
                               for part, share in zip(rows, shares, strict=True)])
