"""Stages of an encoder–decoder, one after the other, are the whole; who gets which layers."""

import numpy as np
import pytest

from tests.models.seq2seq import sources, tiny
from tfspeed.dataflow import graph, plan, stream, traced
from tfspeed.dataflow.plan import Work
from tfspeed.dataflow.problem import Links
from tfspeed.dataflow.seq2seq_stage import ListeningStage, StageEncoderDecoder


def parts(whole):
    """Two stages, which cut either side elsewhere: the first has the whole encoder but its norm."""
    return [ListeningStage(StageEncoderDecoder(whole, layers, encoder, first, not first), False,
                           (3,), (5,))
            for layers, encoder, first in (((0,), (0, 1), True), ((1,), (), False))]


def through(stages, header, *arrays):
    for stage in stages:
        stage._functions = Eager(stage)
        _, arrays = stage(header, list(arrays))
    return arrays


class Eager(dict):
    """Functions of a stage that nobody compiles: a test would wait for that."""

    def __init__(self, stage):
        self.stage = stage

    def __contains__(self, key):
        return True

    def __getitem__(self, key):
        kind, capacity, _, ends = key
        return getattr(self.stage, f"_make_{kind}")(
            capacity, (lambda logits: logits) if ends else None)


@pytest.mark.parametrize("shape", ["t5", *(pytest.param(shape, marks=pytest.mark.slow)
                                           for shape in ("whisper", "bart", "t5_gated"))])
def test_stages_in_turn_are_the_whole(shape):
    model = tiny(shape)
    whole, stages = model.keras_model, parts(model.keras_model)
    source, tokens = model.checked_source(sources(model, 2)), np.asarray([[0, 7], [5, 9]], np.int32)
    header = {"group": 0, "source": 4, "copies": 1, "kept": (), "capacity": 8, "sampling": None}
    encoded = through(stages, header | {"kind": "encode"}, source)
    through(stages, header | {"kind": "hear"}, *encoded)
    expected = model.given(whole.encode(source))
    np.testing.assert_allclose(through(stages, header | {"kind": "score"}, tokens)[0],
                               expected.score(tokens), atol=1e-4)
    lengths, state = np.asarray([1, 2], np.int32), whole.initial_state(2, 8)
    # The sampler is left out, so these are logits: without what is never said.
    for kind, x, more in (("prefill", tokens, {"begin": 0}), ("step", tokens[:, 1:], {})):
        first = kind == "prefill"
        found = through(stages, header | {"kind": kind, **more}, x, *([lengths] if first else []))
        wanted, state = (expected.prefill(x, lengths, state) if first
                         else expected.step(x[:, 0], state))
        wanted = np.where(np.isin(np.arange(64), [3, 5] if first else [3]), -1e9, wanted)
        np.testing.assert_allclose(found[0], wanted, atol=1e-4)
    assert sum(v.numpy().size for s in stages for v in s.decoder.weights) < 1.5 * model.parameters
    stages[0].keep((4,))
    assert stages[0]._sources
    stages[0].keep((5,))
    assert not stages[0]._sources


@pytest.mark.slow
def test_an_encoder_becomes_a_chain_too():
    model = tiny("t5", encoder_layers=3).keras_model
    work = Work(1, 2, 2, 4, 3, 16, source=6, source_piece=2)
    made, _ = traced.chains(model, work, np.zeros((2, 6), np.int32))
    assert [node.name for node in made["encode"].nodes] == [
        "embedding", "block 0", "block 1", "block 2", "head"]
    assert made["encode"].edges == {(i, i + 1): 2 * 6 * 16 * 4 for i in range(4)}
    block = model.decoder[0]
    read = sum(4 * v.numpy().size for v in block.weights) - sum(
        4 * v.numpy().size for v in block.cross.key_value.weights)  # made when it was heard
    assert made["step"].nodes[1].weight_bytes == read


def test_who_hears_more_encodes_less():
    """The decoder's second stage has more layers, so more keys and values to make."""
    decoding = {"prefill": np.zeros(8), "step": np.array([30.0, 1, 1, 1, 1, 1, 1, 0])}
    own = {**decoding, "encode": np.array([2.0, 4, 4, 4, 4, 4, 0]), "hear": np.r_[0, [2.0] * 6, 0],
           **{f"{kind}_call": np.zeros(1) for kind in ("prefill", "step", "encode", "hear")}}
    sizes = {"prefill": [1] * 7, "step": [1] * 7, "encode": [10] * 6}
    work = Work(2, 1, 1, 4, 8, 16, source=6, source_piece=1)
    made = plan.make([own, own], sizes, Links(0, 1e9), work, shared_head=False)
    assert [p.blocks for p in made] == [range(0, 0), range(6)]
    assert [p.encoder.blocks for p in made] == [range(4), range(4, 5)]
    assert made[0].seconds["encode"] == 18
    assert made[1].seconds["hear"] == 12
    assert [p.sent["hear"] for p in made] == [10, 0]
    assert made[0].content == "encoder blocks 0–3, embedding"
    assert list(made[1].nodes("encode")) == [5, 6]


def test_what_was_encoded_goes_round_once_more():
    flow = stream.Hearing([({"kind": "encode", "group": i}, []) for i in range(2)])
    assert next(flow.columns()) is None
    header, _ = flow.ready.popleft()
    flow.take(header, ["states", "bias"])
    assert flow.ready.popleft() == ({"kind": "hear", "group": 0}, ["states", "bias"])


def test_rows_are_grouped_and_filled_up():
    assert stream.grouped(5, 2).tolist() == [[0, 1, 2], [3, 4, 4]]
    assert stream.grouped(1, 4).tolist() == [[0]]
    assert [stream.piece_of(6, length, 256) for length in (16, 100, 300)] == [6, 3, 1]


def test_scopes_of_either_side_are_layers():
    assert [graph._layer(name) for name in ("encoder_2/mlp/MatMul", "decoder_11_1/add", "block_3/x",
                                            "decoder_positions/gather")] == [2, 11, 3, None]
