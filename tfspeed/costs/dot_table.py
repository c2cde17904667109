"""Seconds of a product between those that `dots.py` timed."""

import functools
import math

import numpy as np

from tfspeed.costs.dots import HEAD_ROWS, MATRIX_BYTES, NARROW, NEAR, OUTPUTS
from tfspeed.costs.reading import LONG, hits
from tfspeed.errors import TfspeedError

_SHARE = 2 / 3  # of the cache, where others use it too
_MOST_NARROW = 4.0  # times what that takes more: the line is not followed below 151 outputs


class Table:
    """Seconds of a product, between those that were measured.

    Args:
        dots, unpacking, narrow: see `measure`, `measure_unpacking` and `measure_narrow`.
        cache: bytes of the last-level cache.
        longer: the table of another number of threads, where 16 bits were timed as well, and more
            rows.
    """

    def __init__(self, dots: list[list], unpacking: dict[str, float],
                 narrow: list[list[float]], cache: int, longer: "Table | None" = None):
        self._columns: dict = {}
        self._cache, self._longer = _SHARE * cache, longer
        for rows, size, transposed, dtype, seconds in _undisturbed(dots):
            columns = self._columns.setdefault((dtype, bool(transposed)), {})
            column = columns.setdefault(size, ([], []))
            column[0].append(math.log(rows))
            column[1].append(math.log(seconds))
        self._narrow = [[math.log(rows), max(0.0, seconds / self.a_weight(
            rows, NEAR * MATRIX_BYTES) - 1)] for rows, seconds in narrow]
        self._halves = self._ratios() or (longer._halves if longer else {})
        # What a product takes longer; XLA, which unpacks as it multiplies, may take less. A matrix
        # that was just unpacked lies in the cache.
        plain = self.a_weight(1, MATRIX_BYTES)
        self.unpacking = {int(bits): seconds - plain for bits, seconds in unpacking.items()}

    def _ratios(self) -> dict:
        """Of each type of 16 bits, transposed or not: by the logarithm of the matrix's values,
        ascending, logarithms of rows, and of how many times as long as in float32 they take where
        both come from the cache."""
        found = {}
        for (dtype, transposed), columns in self._columns.items():
            if dtype == "float32":
                continue
            for size, (at, seconds) in sorted(columns.items()):
                floats = [math.log(self.a_weight(round(math.exp(x)), MATRIX_BYTES, transposed))
                          for x in at]
                found.setdefault((dtype, transposed), {})[math.log(size / 2)] = (
                    at, np.subtract(seconds, floats))
        return found

    def seconds(self, rows: int, weights: int, read: float, transposed: bool = False,
                steps: int = LONG) -> float:
        """In float32.

        Args:
            read: bytes of all weights that are read in turn.
        """
        return weights * _a_weight(self, rows, read, transposed and rows <= HEAD_ROWS[-1], steps)

    def narrow(self, rows: int, outputs: int) -> float:
        """How many times as long a weight of a matrix with so many outputs takes."""
        if not self._narrow:
            return 1.0
        share = (1 / outputs - 1 / OUTPUTS) / (1 / NARROW - 1 / OUTPUTS)
        more = float(np.interp(math.log(rows), *zip(*self._narrow, strict=True)))
        return 1 + min(_MOST_NARROW, max(0.0, share)) * more

    def a_weight(self, rows: int, read: float, transposed: bool = False,
                 steps: int = LONG) -> float:
        """In float32.

        Args:
            steps: see `hits`.
        """
        columns = self._columns["float32", transposed]
        near, at = sorted(columns)[-2], math.log(rows)
        fast, here = columns[near], self._missed(read, steps)
        found = float(np.interp(at, *fast)) + self._beyond_rows(at, fast[0][-1], transposed)
        for size in columns.keys() - {near}:
            counts, seconds = columns[size]
            # From farther away it takes no less, from nearer by no more. Fewer numbers of rows
            # were timed there: the difference is what goes on between them, and fades beyond.
            gap = (max if size > near else min)(0.0, float(
                np.interp(at, counts, np.subtract(seconds, np.interp(counts, *fast)))))
            fading = max(0.0, 1 - max(0.0, at - counts[-1]) / math.log(8))
            beside = self._missed(near)
            # A cache may be so small that it holds nothing of either.
            apart = self._missed(size) - beside
            share = (here - beside) / apart if apart else float((read > near) == (size > near))
            found += min(1.0, max(0.0, share)) * gap * fading
        return math.exp(found)

    def _missed(self, read: float, steps: int = LONG) -> float:
        """How much of so many bytes that are read in turn comes from memory."""
        return 1 - hits(read / self._cache, steps)

    def _beyond_rows(self, at: float, last: float, transposed: bool) -> float:
        """What more rows than any that were timed take longer, all logarithms: as in the longer
        table, and each as much as any other beyond that one's."""
        if at <= last:
            return 0.0
        if self._longer is None:
            return at - last
        columns = self._longer._columns["float32", transposed]
        known = columns[sorted(columns)[-2]]
        most = max(last, known[0][-1])
        return float(np.interp(min(at, most), *known) - np.interp(last, *known)) + max(0, at - most)

    def beyond(self, rows: int, weights: int, read: float, dtype: str,
               transposed: bool = False, steps: int = LONG) -> float:
        """Seconds that it takes longer (or less: below 0) in a type of 16 bits, of which half as
        many bytes are waited for.

        Raises:
            TfspeedError: it was not timed.
        """
        if dtype == "float32":
            return 0.0
        if not self._halves:
            raise TfspeedError("This calibration knows nothing of products in 16 bits.",
                               type=dtype, hint="python scripts/calibrate.py makes a new one.")
        transposed = transposed and rows <= HEAD_ROWS[-1]
        cached = _a_weight(self, rows, MATRIX_BYTES, transposed)
        waited = _a_weight(self, rows, read, transposed, steps) - cached
        by_size = self._halves[dtype, transposed]
        ratios = [float(np.interp(math.log(rows), *measured)) for measured in by_size.values()]
        ratio = math.exp(np.interp(math.log(weights), list(by_size), ratios))
        return weights * (cached * (ratio - 1) - waited / 2)


def _undisturbed(dots: list[list]) -> list[list]:
    """Those from nearer take no longer than those from farther away: if they did, they were
    disturbed, which makes times longer, never shorter."""
    found, least = [], {}
    for rows, size, transposed, dtype, seconds in sorted(dots, key=lambda row: (row[0], -row[1])):
        kind = rows, transposed, dtype if dtype == "float32" else (dtype, size)  # in one place
        least[kind] = min(seconds, least.get(kind, seconds))
        found.append([rows, size, transposed, dtype, least[kind]])
    return found


@functools.lru_cache(maxsize=4096)
def _a_weight(table: Table, rows: int, read: float, transposed: bool, steps: int = LONG) -> float:
    return table.a_weight(rows, read, transposed, steps)
