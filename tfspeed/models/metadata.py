"""Typed reading of a model file's metadata: a wrong key is a clear error, never a surprise."""

import math

from tfspeed.errors import TfspeedError


class Metadata:
    """A dictionary from a file, read with types.

    Args:
        values: the dictionary.
        what: names the file's kind in errors.
        prefix: put in front of every key.
    """

    def __init__(self, values: dict, what: str, prefix: str = ""):
        self.values, self.what, self.prefix = values, what, prefix

    def get(self, key: str, kind: type, default=None):
        """The value under `key` as `kind` (int, float, bool, str, list or dict); `default` where
        it is missing or null, an error where there is no default."""
        key = self.prefix + key
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise TfspeedError(f"The {self.what} lacks a key that the model needs.", key=key)
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < 2**53 else math.inf
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, kind) or (kind in (int, float) and isinstance(value, bool)):
            raise TfspeedError(f"A key of the {self.what} must be of type {kind.__name__}.",
                               key=key, value=str(value)[:80])
        if kind is float and not math.isfinite(value):
            raise TfspeedError(f"A key of the {self.what} must be finite.", key=key, value=value)
        return value

    def has(self, key: str) -> bool:
        return self.values.get(self.prefix + key) is not None
