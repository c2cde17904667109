"""A matrix as the product of two thin ones, and how a budget is shared out over all layers.

Of all matrices of rank r, `U_r U_rᵀ W` moves the outputs `W x` least, where U are the principal
directions of the outputs, the eigenvectors of `W H Wᵀ`, H the Gram matrix of the inputs: the
truncated singular value decomposition of `W L` with `L Lᵀ = H`, less the inverse of L. Each
direction's eigenvalue is the mean square that the outputs lose with it. Source: SVD-LLM,
arXiv:2403.07378 (whitening); SliceGPT, arXiv:2401.15024 (principal directions of signals).
"""

import dataclasses
import itertools

import numpy as np

from tfspeed.compression.hessian import damped

_DAMPING = 0.01  # what the text does not show is kept by its size


@dataclasses.dataclass(frozen=True, eq=False)
class Spectrum:
    """What a layer loses with each direction.

    Attributes:
        shape: `(out, in)`.
        energies: loss of each direction, the largest first, `[min(out, in)]`, in a unit that all
            layers share.
        multiple: ranks are multiples of it.
    """

    shape: tuple[int, int]
    energies: np.ndarray
    multiple: int

    @property
    def parameters(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def break_even(self) -> int:
        """The largest rank that saves anything; 0 where none does."""
        return (self.parameters - 1) // sum(self.shape) // self.multiple * self.multiple

    def saved(self, rank: int) -> int:
        """Parameters that two products of a rank do without; negative where one holds less."""
        return self.parameters - rank * sum(self.shape)


def decomposed(matrix: np.ndarray, gram: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Principal directions of the outputs.

    Args:
        matrix: `[out, in]`.
        gram: mean of `x xᵀ` of the inputs, `[in, in]`; None: all inputs alike (a plain SVD).

    Returns:
        Orthonormal directions, float64 `[out, k]`, k the smaller of out and in, and the mean square
        of the outputs along each, float64 `[k]`, the largest first.
    """
    matrix = np.asarray(matrix, np.float64)
    out, width = matrix.shape
    inputs = np.eye(width) if gram is None else damped(gram, _DAMPING)
    if out <= width:
        energies, directions = np.linalg.eigh(matrix @ inputs @ matrix.T)
    else:  # the same eigenvalues, of a smaller matrix
        root = np.linalg.cholesky(inputs)
        energies, right = np.linalg.eigh(root.T @ (matrix.T @ matrix) @ root)
        # Orthogonal already but for those without energy, which are rounding errors.
        directions = np.linalg.qr(matrix @ (root @ right[:, ::-1]))[0][:, ::-1]
    return directions[:, ::-1], np.maximum(energies[::-1], 0.0)


def halves(matrix: np.ndarray, gram: np.ndarray | None, rank: int,
           ) -> tuple[np.ndarray, np.ndarray]:
    """`first` `[rank, in]` and `second` `[out, rank]`, float32.

    What passes between the two is scaled by the fourth root of its energy on either side, so that
    rounding to few bits meets even channels.
    """
    directions, energies = decomposed(matrix, gram)
    directions, energies = directions[:, :rank], energies[:rank]
    even = np.maximum(energies, 1e-12 * max(energies[0], 1e-30)) ** 0.25
    first = (directions.T @ matrix) / even[:, None]
    return first.astype(np.float32), (directions * even).astype(np.float32)


def fitting(multiple: int, shape: tuple[int, int]) -> int:
    """A narrow layer gets finer ranks: eight at least under its smaller side."""
    return max(1, min(multiple, min(shape) // 8))


def ranks(spectra: dict[str, Spectrum], goal: int) -> dict[str, int]:
    """The ranks that together do without at least `goal` parameters and lose least.

    Layers for which a smaller rank does not pay are left out: they stay whole. Each layer's loss
    over its parameters is followed along its convex hull, and the cheapest steps of all layers go
    first (water-filling), the last one as far as is needed.

    Returns:
        Ranks by name; what can be reached where the goal cannot.
    """
    steps = []
    for name, spectrum in spectra.items():
        steps += [(price, name, rank) for price, rank in _hull(spectrum)]
    chosen: dict[str, int] = {}
    freed = 0
    for _, name, rank in sorted(steps, key=lambda step: step[0]):
        if freed >= goal:
            break
        spectrum = spectra[name]
        before = spectrum.saved(chosen[name]) if name in chosen else 0
        # The largest rank that is enough, if the step goes that far.
        left = spectrum.parameters - (goal - freed + before)
        enough = left // sum(spectrum.shape) // spectrum.multiple * spectrum.multiple
        chosen[name] = max(rank, min(enough, chosen.get(name, spectrum.break_even)))
        freed += spectrum.saved(chosen[name]) - before
    return chosen


def reach(spectra: dict[str, Spectrum]) -> int:
    """The most parameters that `ranks` can do without."""
    return sum(max(0, s.saved(s.multiple)) for s in spectra.values())


def _hull(spectrum: Spectrum) -> list[tuple[float, int]]:
    """Steps of rising price: loss a parameter, and the rank that a step leads to."""
    tail = np.concatenate([np.cumsum(spectrum.energies[::-1])[::-1], [0.0]])
    corners = [(0, 0.0, 0)]  # parameters saved, loss, rank
    for rank in range(spectrum.break_even, 0, -spectrum.multiple):
        point = spectrum.saved(rank), float(tail[rank]), rank
        while len(corners) > 1 and _price(corners[-2], point) <= _price(corners[-2], corners[-1]):
            corners.pop()
        corners.append(point)
    return [(_price(a, b), b[2]) for a, b in itertools.pairwise(corners)]


def _price(a, b) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
