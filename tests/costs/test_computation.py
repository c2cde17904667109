"""Operations and bytes on paper agree with those of the graph that TensorFlow traces."""

import dataclasses

import pytest
import tensorflow as tf

from tests.conftest import MODELS, TINY, tiny_decoder, tiny_recurrent, tiny_uncached
from tests.models.seq2seq import tiny
from tfspeed.costs import computation, seq2seq_shapes, shapes, traced
from tfspeed.errors import TfspeedError
from tfspeed.litert.formats import Formats
from tfspeed.litert.pack import Packer

BATCH, LENGTH, CAPACITY = 3, 7, 24
SLOW = pytest.mark.slow
FAMILIES = {
    **{name: make for name, make in MODELS.items() if name != "uncached"},
    "untied": lambda: tiny_decoder(tied_embeddings=False, head_bias=True),
    "parallel": lambda: tiny_decoder(parallel_residual=True, shared_norm=True, mlp_bias=True),
    "gemma": lambda: tiny_decoder(qk_norm=True, post_norms=True, logit_softcap=30.0,
                                  attention_softcap=50.0, head_dim=8),
}


def traced_passes(model):
    """The counts of a prefill and of a step."""
    state = model.initial_state(BATCH, CAPACITY)
    states = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), state)
    tokens = tf.TensorSpec((BATCH, LENGTH), tf.int32)
    lengths = tf.TensorSpec((BATCH,), tf.int32)
    prefill = tf.function(model.prefill).get_concrete_function(tokens, lengths, states)
    step = tf.function(model.step).get_concrete_function(lengths, states)
    return traced.count(prefill, loop_runs=LENGTH), traced.count(step)


@pytest.mark.parametrize("name", FAMILIES)
def test_paper_and_graph_agree(name):
    model = FAMILIES[name]()
    shape = shapes.of(model)
    prefill, step = traced_passes(model)
    on_paper = computation.padded_prefill(shape, BATCH, LENGTH, CAPACITY)
    assert on_paper.flops == pytest.approx(prefill.flops, rel=0.01)
    on_paper = computation.padded_step(shape, BATCH, CAPACITY)
    assert on_paper.flops == pytest.approx(step.flops, rel=0.01)
    read = on_paper.weight_bytes + 4 * shape.small_values
    assert read == pytest.approx(step.variable_bytes, rel=0.01)
    assert shape.parameters == model.parameters


@pytest.mark.parametrize("name", ["whisper", *(pytest.param(name, marks=SLOW)
                                              for name in ("t5_gated", "bart"))])
def test_paper_and_graph_agree_after_a_source(name):
    model = tiny(name)
    shape = seq2seq_shapes.of(model)
    source = model.checked_source(model.default_source(BATCH))
    function = tf.function(model.encode).get_concrete_function(
        tf.TensorSpec(source.shape, source.dtype))
    on_paper = computation.encoding(shape.source.encoder, BATCH, shape.source.least)
    assert on_paper.flops == pytest.approx(traced.count(function).flops + _convolved(model),
                                           rel=0.01)
    encoded = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype),
                                    function.structured_outputs)
    state = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype),
                                  model.initial_state(BATCH, CAPACITY))
    step = traced.count(tf.function(lambda tokens, state, encoded: model.given(encoded).step(
        tokens, state)).get_concrete_function(tf.TensorSpec((BATCH,), tf.int32), state, encoded))
    on_paper = computation.padded_step(shape, BATCH, CAPACITY)
    assert on_paper.flops == pytest.approx(step.flops, rel=0.01)
    assert shape.parameters == model.parameters
    assert shape == seq2seq_shapes.encoder_decoder(model.config, model.name)
    filled = computation.filled_step(shape, BATCH, 10)
    assert filled.source == shape.source.length


def _convolved(model) -> int:
    """What convolutions multiply, which are no dot products in the graph."""
    c = model.config
    if c.source == "tokens":
        return 0
    return 2 * BATCH * 3 * c.hidden_dim * (c.source_frames * c.mels
                                           + c.source_length * c.hidden_dim)


def test_the_bytes_of_a_step_are_those_of_the_model():
    model = tiny_decoder()
    shape = shapes.of(model)
    step = computation.filled_step(shape, BATCH, 10)
    assert (step.weight_bytes + 4 * shape.small_values + step.cache_bytes(4)
            == model.step_bytes(BATCH, 10))


FORMATS = ("float32", "float16", "int8", "int4", "int4_channel,head=int4")


@pytest.mark.parametrize("spelled", FORMATS)
def test_the_bytes_of_packed_weights(spelled):
    model = tiny_decoder(hidden_dim=32, mlp_dim=64)
    formats = Formats(spelled)
    packed = Packer(model.keras_model, formats).pack()
    assert shapes.of(model).stored(formats).step_weight_bytes == packed.step_bytes


def test_strategies_change_the_shape(tmp_path):
    import strategies
    model = tiny_decoder(hidden_dim=32, mlp_dim=64)
    whole = shapes.of(model)
    quantized = shapes.of(strategies.create("quantize").apply(model))
    assert {m.bits for m in quantized.matrices} == {8}
    assert quantized.step_weight_bytes < whole.step_weight_bytes / 3
    low = strategies.create("low_rank").apply(model)
    thin = shapes.of(low)
    assert any(m.rank for m in thin.matrices)
    assert thin.parameters == low.parameters
    step = traced_passes(low)[1]
    assert computation.padded_step(thin, BATCH, CAPACITY).flops == pytest.approx(step.flops,
                                                                                 rel=0.01)


def test_low_rank_on_paper_keeps_its_share():
    shape = shapes.decoder(TINY)
    thin = shape.thinned(0.5)
    layers = sum(m.parameters for layer in thin.layers for m in layer)
    assert layers <= 0.5 * sum(m.parameters for layer in shape.layers for m in layer)
    assert thin.head == shape.head
    with pytest.raises(TfspeedError, match="between 0 and 1"):
        shape.thinned(1.5)


def test_what_is_filled_is_less_than_the_capacity():
    shape = shapes.of(tiny_decoder(sliding_window=5, sliding_layers=(True, False)))
    windowed, whole = computation.filled_prefill(shape, 1, 20).pairs
    assert windowed == 4 * sum(min(i + 1, 5) for i in range(20))
    assert whole == 4 * sum(i + 1 for i in range(20))
    assert computation.filled_step(shape, 2, 20).slots == (10, 40)


def test_zeros_save_no_operation():
    shape = shapes.decoder(TINY, density=0.5)
    dense = shapes.decoder(TINY)
    assert (computation.filled_step(shape, 1, 8).flops
            == computation.filled_step(dense, 1, 8).flops)


def test_a_state_does_not_grow_with_the_text():
    shape = shapes.of(tiny_recurrent("lstm"))
    assert (computation.filled_step(shape, 2, 5).cache_bytes(4)
            == computation.filled_step(shape, 2, 50).cache_bytes(4) == 2 * 2 * 2 * 16 * 4)


def test_unknown_operators_are_refused():
    with pytest.raises(TfspeedError, match="decoders and recurrent"):
        shapes.of(tiny_uncached())


def test_a_longer_prompt_is_padded():
    assert computation.padded_lengths(100, 20) == (128, 192)


def test_a_shape_that_depends_on_values_is_refused():
    function = tf.function(lambda x: x @ tf.transpose(x)).get_concrete_function(
        tf.TensorSpec((None, 4)))
    with pytest.raises(TfspeedError, match="shapes are known"):
        traced.count(function)


def test_einsum_and_called_functions_are_counted():
    inner = tf.function(lambda x, y: tf.einsum("abc,cd->abd", x, y))
    outer = tf.function(lambda x, y: inner(x, y)).get_concrete_function(
        tf.TensorSpec((2, 3, 4)), tf.TensorSpec((4, 5)))
    assert dataclasses.astuple(traced.count(outer)) == (2 * 2 * 3 * 4 * 5, 1, 0)
