"""Variables whose values are still in the model's file: a worker that holds a part of a model reads
no more than that part.

Such a variable has a shape and a type and no memory (`conversion.unallocated`); whatever computes
with it fails. Only strategies that say `reads_part` are given models of them.
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

_READER = "_tfspeed_reader"


def later(variable: keras.Variable, read: Callable[[], tf.Tensor]) -> None:
    """Leaves it to `read`, which is called whenever the values are asked for."""
    object.__setattr__(variable, _READER, read)


def values(variable: keras.Variable) -> np.ndarray:
    """What a variable holds, or would hold had it been read; not to be written to."""
    read = getattr(variable, _READER, None)
    return keras.ops.convert_to_numpy(variable if read is None else read())
