"""Where zeros may lie in a matrix: anywhere, m of every n neighbours, or whole blocks."""

import dataclasses
import re

import numpy as np

from tfspeed.errors import TfspeedError


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Of a matrix `[out, in]`; the neighbours of a group lie along the input.

    Attributes:
        zeros: how many of each group of `columns` neighbours go; 0: zeros come by the sparsity.
        rows, columns: the block that goes or stays as a whole, where `zeros` is 0.
    """

    zeros: int = 0
    rows: int = 1
    columns: int = 1

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """`unstructured`; `2:4` (two zeros in every four); `4x1` (blocks of 4 outputs, 1 input).

        Raises:
            TfspeedError: it is spelled otherwise, or leaves nothing or everything.
        """
        if text == "unstructured":
            return cls()
        match = re.fullmatch(r"(\d{1,6})([:x])(\d{1,6})", text)
        first, second = (int(match[1]), int(match[3])) if match else (0, 0)
        if first and match[2] == ":" and first < second:
            return cls(zeros=first, columns=second)
        if first and second and match[2] == "x":
            return cls(rows=first, columns=second)
        raise TfspeedError(
            "A pattern is `unstructured`, `m:n` (m zeros in every n inputs of an output, m < n), "
            "or `RxC` (blocks of R outputs and C inputs).", pattern=text,
            hint="For example 2:4, or 4x1.")

    def sparsity(self, wanted: float) -> float:
        """The share of zeros that it gives."""
        return self.zeros / self.columns if self.zeros else wanted

    def check(self, name: str, shape: tuple[int, int]) -> None:
        """Raises TfspeedError where a matrix `[out, in]` is not made of whole groups or blocks."""
        if shape[0] % self.rows or shape[1] % self.columns:
            raise TfspeedError(
                "The pattern must divide every matrix that it is used on.", layer=name,
                outputs=shape[0], inputs=shape[1], rows=self.rows, columns=self.columns,
                hint="Choose other layers with the option `targets`.")

    def keep(self, scores: np.ndarray, sparsity: float, by_row: bool) -> np.ndarray:
        """Which weights stay.

        Args:
            scores: how much each weight is worth, `[out, in]`, at least 0.
            by_row: an equal share of each output goes; else that of all outputs together.

        Returns:
            bool `[out, in]`.
        """
        outputs, inputs = scores.shape
        if self.zeros:
            groups = scores.reshape(outputs, -1, self.columns)
            return _highest(groups, self.zeros).reshape(scores.shape)
        pooled = scores.reshape(outputs // self.rows, self.rows, inputs // self.columns,
                                self.columns).sum((1, 3))
        flat = pooled if by_row else pooled.reshape(1, -1)
        kept = _highest(flat, round(sparsity * flat.shape[1])).reshape(pooled.shape)
        return np.repeat(np.repeat(kept, self.rows, 0), self.columns, 1)


def _highest(scores: np.ndarray, zeros: int) -> np.ndarray:
    """False for the `zeros` smallest along the last axis."""
    kept = np.ones(scores.shape, bool)
    if zeros:
        lowest = np.argpartition(scores, zeros - 1, axis=-1)[..., :zeros]
        np.put_along_axis(kept, lowest, False, axis=-1)
    return kept
