"""What each step reads: continuous batching (Orca, OSDI 2022) with chunked prefill.

Every text that decodes reads its token in every step; what is left of a step's budget goes to
prompts, piece by piece, so that a long one stalls nobody. Texts come and go between steps. Where
blocks run out, the last in rank gives its own back and starts over later: the first in rank always
gets on, so there is no deadlock.
"""

import bisect

from tfspeed.errors import TfspeedError
from tfspeed.serving.backend import Chunk
from tfspeed.serving.blocks import ROOT, BlockPool, chain
from tfspeed.serving.request import Request


class Scheduler:
    """Pure bookkeeping. `plan` says what to read, `read` is told that it was.

    Args:
        max_rows: texts that are continued at once.
        chunk: tokens of prompts that a step reads at most, beside a token of each other text.
        shares: whether texts that begin alike share blocks.
    """

    def __init__(self, pool: BlockPool, max_rows: int = 32, chunk: int = 64, shares: bool = True):
        if max_rows < 1 or chunk < 1:
            raise TfspeedError("A scheduler needs at least one row and one token a step.",
                               max_rows=max_rows, chunk=chunk)
        self.pool, self.max_rows, self.chunk, self.shares = pool, max_rows, chunk, shares
        self.running: list[Request] = []  # both in order of rank
        self.waiting: list[Request] = []
        self.preemptions = 0

    def add(self, request: Request) -> None:
        """Puts a request into the queue.

        Raises:
            TfspeedError: it could never fit, even alone.
        """
        needed = len(request.prompt) + request.max_tokens
        if self.pool.blocks_for(needed) > self.pool.count:
            raise TfspeedError("The prompt and the new tokens must fit into the KV cache.",
                               tokens=needed, cache_tokens=self.pool.count * self.pool.size,
                               hint="Ask for fewer tokens, or start with a larger --cache_tokens.")
        _insert(self.waiting, request)

    def remove(self, request: Request) -> bool:
        """Forgets a request that is over or was cancelled; gives whether it was there."""
        for queue in (self.running, self.waiting):
            if request in queue:
                queue.remove(request)
                self._let_go(request)
                return True
        return False

    def plan(self) -> list[tuple[Request, Chunk]]:
        """What the next step reads; empty where there is nothing to do."""
        steps: dict[Request, int] = {}
        for request in list(self.running):
            if request.unread == 1 and request in self.running:
                self._give_blocks(request, 1, steps)
        left = self.chunk
        for request in list(self.running):
            if left and request.unread > 1 and request in self.running:
                self._skip_shared(request)
                left -= self._give_blocks(request, min(request.unread, left), steps)
        while left and (request := self._admit(steps)):
            left -= self._give_blocks(request, min(request.unread, left), steps)
        return [(request, self._chunk(request, count)) for request, count in steps.items()]

    def read(self, request: Request, count: int) -> None:
        """Tells that a step has read `count` more tokens of a request: its full blocks can be
        shared from now on."""
        request.computed += count
        if not self.shares:
            return
        size = self.pool.size
        while (len(request.keys) + 1) * size <= request.computed:
            at = len(request.keys)
            request.keys.append(self._key(request, at))
            self.pool.publish(request.blocks[at], request.keys[at])

    # Below: how blocks change hands.

    def _admit(self, steps: dict) -> Request | None:
        """Lets the first of the queue in, if it has room; lower priorities make some for it."""
        while self.waiting:
            request = self.waiting[0]
            reused = self._shared_ahead(request)
            # Blocks that nobody holds count as room, and sharing one takes it.
            needed = self.pool.blocks_for(len(request.tokens)) - len(reused)
            room = self.pool.available - sum(not self.pool.holders(b) for b in reused)
            # A block for each of the others to grow, or the next step would take this one's.
            if len(self.running) < self.max_rows and needed + len(self.running) <= room:
                self.waiting.remove(request)
                _insert(self.running, request)
                self._skip_shared(request)
                return request
            if not self.running or self.running[-1].priority <= request.priority:
                return None
            self._preempt(self.running[-1], steps)
        return None

    def _shared_ahead(self, request: Request) -> list[int]:
        """Blocks that hold what a request would read next. Its last token is never among them: the
        logits after it are wanted."""
        size, found = self.pool.size, []
        if not self.shares or request.computed % size:
            return found
        key = request.keys[-1] if request.keys else ROOT
        for at in range(request.computed // size, (len(request.tokens) - 1) // size):
            key = chain(key, request.tokens[at * size:(at + 1) * size])
            block = self.pool.find(key)
            if block is None:
                break
            found.append(block)
        return found

    def _skip_shared(self, request: Request) -> None:
        """Takes over what others have read of the same text meanwhile."""
        if len(request.blocks) * self.pool.size != request.computed:
            return  # it has begun a block of its own
        for block in self._shared_ahead(request):
            self.pool.share(block)
            request.blocks.append(block)
            request.keys.append(self._key(request, len(request.keys)))
            request.computed += self.pool.size
            request.reused += self.pool.size * (not request.preemptions)

    def _give_blocks(self, request: Request, count: int, steps: dict) -> int:
        """Blocks for `count` more tokens, which it puts into `steps`; 0 where the request had to
        give its own back."""
        while len(request.blocks) * self.pool.size < request.computed + count:
            block = self.pool.take()
            if block is not None:
                request.blocks.append(block)
                continue
            last = self.running[-1]
            self._preempt(last, steps)
            if last is request:
                return 0
        steps[request] = count
        return count

    def _preempt(self, request: Request, steps: dict) -> None:
        """Back into the queue, before all of its rank; what it has read will be read again."""
        steps.pop(request, None)
        self.running.remove(request)
        self._let_go(request)
        request.preemptions += 1
        self.preemptions += 1
        _insert(self.waiting, request)

    def _let_go(self, request: Request) -> None:
        self.pool.release(request.blocks)
        request.blocks, request.keys, request.computed = [], [], 0

    def _key(self, request: Request, at: int) -> bytes:
        size = self.pool.size
        return chain(request.keys[at - 1] if at else ROOT,
                     request.tokens[at * size:(at + 1) * size])

    def _chunk(self, request: Request, count: int) -> Chunk:
        start = request.computed
        end = start + count
        return Chunk(request.tokens[start:end], start, request.blocks,
                     max(end, len(request.prompt)), end == len(request.tokens))


def _insert(queue: list[Request], request: Request) -> None:
    bisect.insort(queue, request, key=lambda r: r.rank)
