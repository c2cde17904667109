"""No block is lost, none is shared wrongly, and everybody is served, whatever comes and goes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfspeed.errors import TfspeedError
from tfspeed.serving.blocks import ROOT, BlockPool, chain
from tfspeed.serving.request import Request
from tfspeed.serving.scheduler import Scheduler

SIZE = 4


class Memory:
    """Stands for a backend: remembers what was written where, and checks what is read."""

    def __init__(self, count):
        self.slots = [[None] * SIZE for _ in range(count)]

    def read(self, request, chunk):
        text = request.tokens[:chunk.end]
        assert list(chunk.tokens) == text[chunk.start:]
        for position in range(chunk.start, chunk.end):
            block = chunk.blocks[position // SIZE]
            self.slots[block][position % SIZE] = tuple(text[:position + 1])
        # All that its attention would see is its own text.
        for position in range(chunk.end):
            block = chunk.blocks[position // SIZE]
            assert self.slots[block][position % SIZE] == tuple(text[:position + 1])


def next_token(request):
    """Follows from the whole text, as a model's would."""
    return (sum(request.tokens) * 7 + len(request.tokens)) % 3


def step(scheduler, memory, finish):
    planned = scheduler.plan()
    written = [b for r, c in planned for b in c.blocks[c.start // SIZE:-(-c.end // SIZE)]]
    assert len(written) == len(set(written))  # nobody writes to another's block
    assert all(scheduler.pool.holders(b) == 1 for b in written)
    assert sum(len(c.tokens) for r, c in planned if r.unread > 1) <= scheduler.chunk
    assert len({r for r, _ in planned}) == len(planned) <= scheduler.max_rows
    for request, chunk in planned:
        memory.read(request, chunk)
    for request, chunk in planned:
        scheduler.read(request, len(chunk.tokens))
        if chunk.wanted:
            request.tokens.append(next_token(request))
            if request.generated == request.max_tokens:
                assert scheduler.remove(request)
                finish(request)
    check(scheduler)
    return planned


def check(scheduler):
    pool = scheduler.pool
    held = [b for r in scheduler.running for b in r.blocks]
    assert all(pool.holders(b) == held.count(b) for b in range(pool.count))
    assert pool.available == pool.count - len(set(held))
    assert all(not r.blocks for r in scheduler.waiting)
    assert len(scheduler.running) <= scheduler.max_rows
    for queue in (scheduler.running, scheduler.waiting):
        assert queue == sorted(queue, key=lambda r: r.rank)
    empty, unused = set(pool._empty), set(pool._unused)
    assert not empty & unused
    assert set(pool._by_key.values()) == {b for b in range(pool.count) if pool._keys[b]}


requests = st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=14), st.integers(1, 9),
                     st.integers(0, 2))
events = st.lists(st.one_of(st.just("step"), st.just("step"), requests, st.integers(0, 9)),
                  max_size=60)


@settings(max_examples=250, deadline=None)
@given(events, st.integers(6, 14), st.integers(1, 4), st.integers(1, 9), st.booleans())
def test_everybody_is_served(events, blocks, rows, chunk, shares):
    scheduler = Scheduler(BlockPool(blocks, SIZE), rows, chunk, shares=shares)
    memory, alive, done = Memory(blocks), [], []
    for event in events:
        if event == "step":
            step(scheduler, memory, done.append)
        elif isinstance(event, int):
            if event < len(alive):
                there = scheduler.remove(alive.pop(event))
                assert there or done
        else:
            prompt, count, priority = event
            alive.append(Request(prompt, count, priority=priority))
            scheduler.add(alive[-1])
        check(scheduler)
    for _ in range(5000):
        if not scheduler.running and not scheduler.waiting:
            break
        assert step(scheduler, memory, done.append)  # something is read in every step
    assert all(r in done for r in alive)
    assert scheduler.pool.available == blocks
    for request in done:
        alone = Request(request.prompt, request.max_tokens)
        while alone.generated < alone.max_tokens:
            alone.tokens.append(next_token(alone))
        assert request.tokens == alone.tokens


def make(blocks=20, **kwargs):
    return Scheduler(BlockPool(blocks, SIZE), **kwargs), Memory(blocks)


def test_a_long_prompt_does_not_stall_the_others():
    scheduler, memory = make(chunk=5)
    short = Request([1, 2], 8)
    scheduler.add(short)
    step(scheduler, memory, print)
    scheduler.add(Request(list(range(30)), 4))
    for count in range(2, 7):
        planned = step(scheduler, memory, print)
        assert [len(c.tokens) for _, c in planned] == [1, 5]
        assert short.generated == count


def test_who_begins_alike_shares():
    scheduler, memory = make(chunk=64)
    text = list(range(13))
    for count in (1, 3):
        scheduler.add(Request(text, count))
        step(scheduler, memory, lambda r: None)
    second = scheduler.running[0]
    assert second.reused == 12
    third = Request([*text[:8], 0, 0, 0], 3)
    scheduler.add(third)
    step(scheduler, memory, print)
    assert third.reused == 8
    assert third.blocks[:2] == second.blocks[:2]
    assert third.blocks[2] != second.blocks[2]


def test_the_same_prompt_at_the_same_time_is_read_once():
    scheduler, memory = make(blocks=40, chunk=8)
    for _ in range(4):
        scheduler.add(Request(list(range(25)), 2))
    read = 0
    while scheduler.waiting or scheduler.running:
        read += sum(len(c.tokens) for _, c in step(scheduler, memory, lambda r: None))
    assert read < 25 + 4 * 8


def test_what_was_used_last_is_kept_longest():
    pool = BlockPool(3, SIZE)
    keys = [chain(ROOT, [i] * SIZE) for i in range(3)]
    for key in keys:
        block = pool.take()
        pool.publish(block, key)
        pool.release([block])
    first = pool.find(keys[0])
    pool.share(first)
    pool.release([first])
    pool.take()
    assert pool.find(keys[1]) is None
    assert pool.find(keys[0]) is not None


def test_a_higher_priority_takes_the_place_of_a_lower_one():
    scheduler, memory = make(max_rows=1)
    low, high = Request([1, 2, 3], 6, priority=1), Request([4], 2)
    scheduler.add(low)
    step(scheduler, memory, print)
    scheduler.add(high)
    assert [r for r, _ in step(scheduler, memory, print)] == [high]
    assert low in scheduler.waiting
    done = []
    while scheduler.running or scheduler.waiting:
        step(scheduler, memory, done.append)
    assert done == [high, low]
    assert low.preemptions == 1


def test_what_could_never_fit_is_refused():
    scheduler, _ = make(blocks=2)
    with pytest.raises(TfspeedError, match=r"must fit into the KV cache.*tokens=9"):
        scheduler.add(Request([1] * 5, 4))
    scheduler.add(Request([1] * 5, 3))


def test_a_block_is_not_released_twice():
    pool = BlockPool(2, SIZE)
    block = pool.take()
    pool.release([block])
    with pytest.raises(TfspeedError, match="released twice"):
        pool.release([block])
    with pytest.raises(TfspeedError, match="can be shared"):
        pool.share(block)
    with pytest.raises(TfspeedError, match="published once"):
        pool.publish(block, b"x")


@pytest.mark.parametrize("bad", [{"prompt": [], "max_tokens": 1}, {"prompt": [1], "max_tokens": 0}])
def test_empty_requests(bad):
    with pytest.raises(TfspeedError, match="t least one"):
        Request(**bad)
