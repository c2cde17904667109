"""Packed matrices: what the kernels compute with is near what was given, and no bit is lost."""

import numpy as np
import pytest

from tests.conftest import tiny_decoder, tiny_recurrent
from tfspeed.engines import create
from tfspeed.errors import TfspeedError
from tfspeed.litert.formats import Formats
from tfspeed.litert.gptq import pack_int4
from tfspeed.litert.smooth import factors
from tfspeed.litert.weights import pack

RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(24, 128)).astype(np.float32)


@pytest.mark.parametrize(("bits", "block", "error", "nbytes"), [
    (32, 0, 0.0, 24 * 128 * 4), (16, 0, 1e-3, 24 * 128 * 2), (8, 0, 0.01, 24 * 128 + 24 * 4),
    (4, 32, 0.12, 24 * 64 + 24 * 4 * 2), (4, 128, 0.14, 24 * 64 + 24 * 2),
    (4, 0, 0.14, 24 * 64 + 24 * 4)])
def test_packed_is_near_the_matrix_and_as_small_as_its_bits(bits, block, error, nbytes):
    weight = pack("m", MATRIX, bits, block)
    off = weight.dequantized() - MATRIX
    assert np.sqrt(np.square(off).mean()) <= error * MATRIX.std()
    assert weight.nbytes == nbytes


def test_int4_values_lie_low_half_first():
    weight = pack("m", np.tile(np.float32([-8, 7, 1, -1]), (1, 8)), 4, 32)
    assert weight.data[:2].tolist() == [0x78, 0xF1]
    np.testing.assert_array_equal(weight.dequantized()[0, :4], [-8, 7, 1, -1])


def test_zeros_stay_zeros():
    for bits, block in ((8, 0), (4, 0), (4, 32)):
        assert not pack("m", np.zeros((4, 32), np.float32), bits, block).dequantized().any()


@pytest.mark.parametrize(("bits", "block"), [(3, 0), (8, 32), (4, 48)])
def test_unknown_formats(bits, block):
    with pytest.raises(TfspeedError, match=f"bits={bits}"):
        pack("m", MATRIX, bits, block)


def test_rows_that_do_not_divide():
    with pytest.raises(TfspeedError, match="width=40"):
        pack("m", np.zeros((2, 40), np.float32), 4, 32)


def test_gptq_rounds_the_product_better_than_plain_rounding():
    mixing = RNG.normal(size=(128, 128)) * np.geomspace(3, 0.05, 128)
    inputs = (RNG.normal(size=(2000, 128)) @ mixing).astype(np.float32)

    def error(weight):
        return np.square(inputs @ (weight.dequantized() - MATRIX).T).mean()

    for block in (32, 0):
        assert error(pack_int4("m", MATRIX, block, inputs)) < 0.7 * error(
            pack("m", MATRIX, 4, block))


def test_factors_even_out_a_channel_that_stands_out():
    inputs = RNG.normal(size=(500, 128)).astype(np.float32)
    inputs[:, 5] *= 40
    factor = factors(inputs, MATRIX)
    assert factor.argmax() == 5
    np.testing.assert_allclose(np.log(factor).mean(), 0, atol=1e-5)


def test_formats_by_name():
    formats = Formats("int4,mlp/down=int8,head=int4_64")
    assert formats.of("block_0/mlp/up") == (4, 32)
    assert formats.of("block_0/mlp/down") == (8, 0)
    assert formats.of("embedding") == (8, 0)
    assert formats.of("head") == (4, 64)
    assert formats.quantized
    assert not Formats("float16").quantized


@pytest.mark.parametrize(("spelled", "words"), [
    ("int3", "weights='int3'"), ("int8,mlp", "pattern=format"), ("int8,(=int4", "layer="),
    ("int8,=int4", "pattern=format"), ("int8,mlp=int5", "weights='int5'"), ("", "weights=''")])
def test_bad_formats(spelled, words):
    with pytest.raises(TfspeedError, match=words):
        Formats(spelled)


def test_a_pattern_that_no_name_has_is_refused():
    names = ["embedding", "head", "block_0/mlp/up"]
    Formats("int4,mlp=int8,^head$=float32").check(names)
    with pytest.raises(TfspeedError, match=r"layer='haed=int4'.*block_0/mlp/up"):
        Formats("int8,mlp=int4,haed=int4").check(names)


@pytest.mark.parametrize("kind", ["decoder", "gru"])
def test_an_engine_refuses_a_layer_that_its_model_lacks(kind):
    model = tiny_decoder() if kind == "decoder" else tiny_recurrent(kind)
    with pytest.raises(TfspeedError, match=r"layer='block_9=int4'.*Names are embedding, head"):
        create("litert:int8,block_9=int4", model)
