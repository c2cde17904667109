"""The KV cache as blocks of a fixed number of tokens (paged attention, arXiv:2309.06180).

A request holds a table of blocks. A full block is known by a hash of all tokens up to its end, so
that requests that begin alike share it; it is never written again, so nothing is ever copied.
Blocks that nobody holds keep their contents until they are needed: the least recently used goes
first.
"""

import array
import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from tfspeed.errors import TfspeedError

ROOT = b""  # the key before the first block


def chain(key: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a block that holds `tokens` after a block of `key`: SHA-256, so that no prompt
    can be made to share another's blocks."""
    return hashlib.sha256(key + array.array("i", tokens).tobytes()).digest()


class BlockPool:
    """Who holds which of `count` blocks of `size` tokens. Holds no keys or values itself."""

    def __init__(self, count: int, size: int):
        if count < 1 or size < 1:
            raise TfspeedError("A cache needs at least one block of at least one token.",
                               count=count, size=size)
        self.count, self.size = count, size
        self._references = [0] * count
        self._keys: list[bytes | None] = [None] * count
        self._by_key: dict[bytes, int] = {}
        self._empty = list(range(count))[::-1]
        self._unused: OrderedDict[int, None] = OrderedDict()  # with contents; oldest first

    @property
    def available(self) -> int:
        """Blocks that `take` can still give."""
        return len(self._empty) + len(self._unused)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.size)

    def take(self) -> int | None:
        """A block for one holder, with nothing in it; None where all are held."""
        if self._empty:
            block = self._empty.pop()
        elif self._unused:
            block, _ = self._unused.popitem(last=False)
            del self._by_key[self._keys[block]]
            self._keys[block] = None
        else:
            return None
        self._references[block] = 1
        return block

    def find(self, key: bytes) -> int | None:
        """The block whose contents are known by a key. `share` makes it the caller's too."""
        return self._by_key.get(key)

    def share(self, block: int) -> None:
        """One more holder of a block that `find` gave."""
        if self._keys[block] is None:
            raise TfspeedError("Only a block with a key can be shared.", block=block)
        self._unused.pop(block, None)
        self._references[block] += 1

    def publish(self, block: int, key: bytes) -> None:
        """Tells that a block is full, for others to share. Where the same contents are known
        already, this copy stays its holder's own."""
        if not self._references[block] or self._keys[block] is not None:
            raise TfspeedError("A block is published once, by its holder.", block=block)
        if key not in self._by_key:
            self._by_key[key] = block
            self._keys[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less of each block of a table. The last of the table will be forgotten first:
        without those before it, it is of no use."""
        for block in reversed(blocks):
            if not self._references[block]:
                raise TfspeedError("A block was released twice.", block=block)
            self._references[block] -= 1
            if self._references[block]:
                continue
            if self._keys[block] is None:
                self._empty.append(block)
            else:
                self._unused[block] = None

    def forget(self) -> None:
        """Empties the blocks that nobody holds."""
        for block in self._unused:
            del self._by_key[self._keys[block]]
            self._keys[block] = None
        self._empty += reversed(self._unused)
        self._unused.clear()

    def holders(self, block: int) -> int:
        return self._references[block]
