"""One engine in every worker process, each on its own rows; the chief gathers the tokens.

What is shared out is the call of `generate`, not its functions, so that every engine can be the
one inside. Workers generate without a word to each other and meet once in `chunk` tokens (after
the first one at once): a collective takes milliseconds, so one a token would cost more than a
small model's step. All times are the chief's, of tokens that it has: the slowest worker and the
network are in them. Within a chunk tokens arrive together, so single gaps (`itl_s`) mean little.

Where the model itself is spread over the workers (`multi_worker+tensor_parallel`) all of them
generate all rows, step by step together; they meet in the same chunks, to hear whether the chief's
caller wants more.

A source goes to all workers as it is, and each encodes its own rows of it: what comes out is
larger, and stays where its rows are generated (Whisper base: 1 MB of frames a row, 37 MB of keys
and values).
"""

import dataclasses
import itertools
import weakref
from collections import deque
from itertools import islice

import numpy as np

from tfspeed.cluster.member import Member
from tfspeed.digest import digest
from tfspeed.engines.base import FINISHED, Engine
from tfspeed.engines.sampling import Sampling
from tfspeed.engines.wrapping import Wrapping, given
from tfspeed.errors import TfspeedError


class SharedSource:
    """A source of which each worker has encoded its rows.

    Attributes:
        key: what the workers call it; None where the chief has all its rows.
        own: what the chief's engine made of its rows.
    """

    def __init__(self, key: int | None, own):
        self.key, self.own = key, own


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
        self.sources: dict[int, object] = {}  # what this worker made of its rows, by their key
        self._keys, self._forgotten = itertools.count(), []
        if not self.together:  # else each holds weights of its own
            member.agree({"weights": digest(v.numpy() for v in inner.model.keras_model.weights)})

    @property
    def devices(self):
        return tuple(f"worker {i}" for i in range(self.member.count))

    @property
    def row_shares(self):
        return 1 if self.together else self.member.count

    def encode(self, source):
        source = np.asarray(self.model.checked_source(source))
        if self._alone(len(source)):
            return SharedSource(None, self.inner.encode(source))
        self._check_free()
        key = next(self._keys)
        self._tell({"encode": key, "shape": source.shape, "dtype": source.dtype.name})
        made = SharedSource(key, self._encode(source))
        weakref.finalize(made, self._forgotten.append, key)
        return made

    def score(self, tokens, encoded=None):
        tokens = np.asarray(tokens, np.int32)
        if encoded is not None and encoded.key is None:
            return self.inner.score(tokens, encoded.own)
        if encoded is None and not self.together:
            return self.inner.score(tokens)
        self._check_free()
        self._tell({"score": tokens.tolist(), "encoded": encoded and encoded.key})
        return self._score(tokens, encoded and encoded.own)

    def serve(self) -> None:
        """Takes part in the chief's work until it tells None."""
        while (request := self.member.tell()) is not None:
            for key in request.pop("forget"):
                self.sources.pop(key, None)
            if "encode" in request:
                source = np.zeros(request["shape"], request["dtype"])
                self.sources[request["encode"]] = self._encode(source)
                continue
            encoded = self.sources.get(request.pop("encoded"))
            if "score" in request:
                self._score(np.asarray(request["score"], np.int32), encoded)
                continue
            sampling = Sampling(**request.pop("sampling"))
            for _ in self._shared(**request, sampling=sampling, encoded=encoded):
                pass

    def _tell(self, request: dict) -> None:
        forget, self._forgotten[:] = self._forgotten[:], []
        self.member.tell({"forget": forget, "encoded": None, **request})

    def _alone(self, rows: int) -> bool:
        """Whether the chief does so many rows by itself."""
        return self.member.count == 1 or (rows == 1 and not self.together)

    def _check_free(self) -> None:
        if self._busy:
            raise TfspeedError("Workers run one generation at a time.",
                               hint="Close the other one first.")

    def _generate(self, prompts, new_tokens, sampling, stop_tokens, encoded=None):
        if self._alone(len(prompts)):
            yield from self.inner.generate(prompts, new_tokens, sampling, stop_tokens,
                                           **given(encoded and encoded.own))
            return
        self._check_free()
        self._busy = True
        try:
            self._tell({"prompts": prompts, "new_tokens": new_tokens,
                        "sampling": dataclasses.asdict(sampling),
                        "stop_tokens": np.asarray(stop_tokens).tolist(),
                        "encoded": encoded and encoded.key})
            yield from self._shared(prompts, new_tokens, stop_tokens, sampling,
                                    encoded and encoded.own)
        finally:
            self._busy = False

    def _shares(self, count: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The rows whose results each worker gives, and those that this one works on."""
        rows = np.arange(count)
        if self.together:  # the chief's word is enough
            return [rows] + [rows[:0]] * (self.member.count - 1), rows
        shares = np.array_split(rows, self.member.count)
        return shares, shares[self.member.index]

    def _encode(self, source: np.ndarray):
        """This worker's rows of the chief's source (of another's only the shape is looked at), or
        None where it has none."""
        whole = self.member.all_gather(np.ascontiguousarray(source).reshape(-1).view(np.int32))[0]
        source = whole.view(source.dtype).reshape(source.shape)
        mine = self._shares(len(source))[1]
        return self.inner.encode(source[mine]) if len(mine) else None

    def _score(self, tokens: np.ndarray, encoded) -> np.ndarray:
        """float32 logits of all rows, each by the worker that has encoded its source."""
        if self.together:
            return self.inner.score(tokens, **given(encoded))
        shares, mine = self._shares(len(tokens))
        shape = len(shares[0]), tokens.shape[1], self.model.vocabulary_size
        sent = np.zeros(shape, np.float32)
        if len(mine):
            sent[:len(mine)] = self.inner.score(tokens[mine], encoded)
        parts = self.member.all_gather(sent.reshape(-1).view(np.int32))
        parts = parts.view(np.float32).reshape(-1, *shape)
        return np.concatenate([part[:len(share)]
                               for part, share in zip(parts, shares, strict=True)])

    def _shared(self, prompts, new_tokens, stop_tokens, sampling, encoded):
        """This worker's part of a generation; yields the tokens of all rows, on every worker."""
        shares, mine = self._shares(len(prompts))
        tokens = iter(())
        if len(mine):
            tokens = self.inner.generate([prompts[row] for row in mine], new_tokens,
                                         sampling.shifted(int(mine[0])), stop_tokens,
                                         **given(encoded))
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
