"""How many bits each matrix gets: what stands after the colon of `--engine=litert:int8`."""

import dataclasses
import functools
import re
from collections.abc import Sequence

from tfspeed.errors import TfspeedError

_NAMED = {"float32": (32, 0), "float16": (16, 0), "int8": (8, 0), "int4": (4, 32),
          "int4_32": (4, 32), "int4_64": (4, 64), "int4_128": (4, 128), "int4_channel": (4, 0)}
_SHOWN = 7  # names in a message


@dataclasses.dataclass(frozen=True)
class Formats:
    """The format of every matrix by its name, such as `block_3/mlp/down`.

    Spelled `default[,pattern=format…]`; a pattern is a regular expression, the last that is found
    in the name counts. `int4` alone keeps the embedding in int8: it is also the output layer,
    where rounding costs most quality and a sixth of the speed.
    """

    spelled: str

    def __post_init__(self):
        self._rules()

    def of(self, name: str) -> tuple[int, int]:
        """Bits and block of the matrix called `name`."""
        return [form for pattern, form in self._rules() if pattern.search(name)][-1]

    def check(self, names: Sequence[str]) -> None:
        """Refuses a pattern that is found in none of a model's names."""
        for spelled in self.spelled.split(",")[1:]:
            pattern = re.compile(spelled.partition("=")[0])
            if not any(map(pattern.search, names)):
                raise TfspeedError("A layer's format is given as pattern=format, and the pattern "
                                   "must be found in a name.", layer=spelled,
                                   hint=f"Names are {', '.join(names[:_SHOWN])} and so on.")

    @classmethod
    @functools.cache  # a fit of the cost models asks thousands of times
    def of_engine(cls, engine: str) -> "Formats":
        """What an engine's name says after its colon: of `fused:int8`, int8."""
        return cls(engine.partition(":")[2] or "float32")

    @property
    def cache_itemsize(self) -> int:
        """Bytes of a value in the fused engine's KV cache, which has float32 or halves."""
        return 4 if self.of("cache")[0] == 32 else 2

    @property
    def quantized(self) -> bool:
        """Whether any matrix is in integers, which makes the kernels quantize activations."""
        return any(form[0] <= 8 for _, form in self._rules())

    @property
    def fewest_bits(self) -> int:
        """Those of the smallest format that any matrix may get."""
        return min(form[0] for _, form in self._rules())

    def _rules(self):
        default, *rules = self.spelled.split(",")
        found = [(re.compile(""), _format(default))]
        if default.startswith("int4"):
            found.append((re.compile("^(embedding|head)$"), _NAMED["int8"]))
        for spelled in rules:
            pattern, _, name = spelled.partition("=")
            if not (pattern and name):
                raise TfspeedError("A layer's format is given as pattern=format.", layer=spelled)
            try:
                found.append((re.compile(pattern), _format(name)))
            except re.error as error:
                raise TfspeedError("A layer's format is given as pattern=format.", layer=spelled,
                                   cause=str(error)) from error
        return found


def _format(name: str) -> tuple[int, int]:
    if name not in _NAMED:
        raise TfspeedError(f"Weights are stored as one of {', '.join(_NAMED)}.", weights=name)
    return _NAMED[name]
