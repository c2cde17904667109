"""Memory that numpy and TensorFlow share: on huge pages, never held twice."""

import keras
import numpy as np
import pytest

from tests.conftest import tiny_decoder
from tfspeed.litert.formats import Formats
from tfspeed.litert.packed_cache import digest
from tfspeed.memory import aligned, lent, values


@pytest.mark.parametrize("count", [1, 3, 1 << 20])  # also more than a huge page
def test_a_tensor_takes_memory_over(count):
    array = aligned((count, 1), np.float32)
    assert array.ctypes.data % 64 == 0
    array[...] = 7
    variable = keras.Variable(lent(array))
    assert np.shares_memory(values(variable), array)
    del array  # TensorFlow keeps it
    variable.assign_add(keras.ops.ones((count, 1)))
    np.testing.assert_array_equal(values(variable), np.full((count, 1), 8, np.float32))


@pytest.mark.parametrize("dtype", ["float32", "int8", "bfloat16", "bool"])
def test_values_of_every_type(dtype):
    variable = keras.Variable([[1, 0], [0, 1]], dtype=dtype)
    np.testing.assert_array_equal(np.asarray(values(variable), np.float32), np.eye(2))


def test_the_digest_sees_every_weight():
    model = tiny_decoder()
    decoder, tokens = model.keras_model, np.zeros((1, 8), np.int32)
    found = {digest(decoder, Formats("int8"), tokens)}
    for variable in decoder.weights:
        value = np.array(values(variable))
        value.flat[-1] += 1
        variable.assign(value)
        found.add(digest(decoder, Formats("int8"), tokens))
    assert len(found) == 1 + len(decoder.weights)
