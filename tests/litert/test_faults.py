"""What must not happen: garbage past the cache's end, a half-loaded engine, memory that stays."""

import errno

import numpy as np
import psutil
import pytest

from tests.conftest import tiny_decoder
from tests.engines.test_engines import generate, reference
from tfspeed.engines import create
from tfspeed.errors import TfspeedError
from tfspeed.litert.graph import TfliteFile
from tfspeed.models.config import DecoderConfig
from tfspeed.models.decoder import Decoder
from tfspeed.models.decoder_model import DecoderModel


def test_a_full_cache_is_an_error_not_garbage(monkeypatch):
    monkeypatch.setattr("tfspeed.litert.session.CAPACITIES", (8, 16))
    model = tiny_decoder()
    engine = create("litert", model)
    session = engine._new_session(1, 16)
    text = [5]
    logits = session.begin(np.asarray([text], np.int32), np.zeros(1, np.int32))
    for _ in range(15):
        text.append(int(logits.argmax()))
        logits = session.step(np.asarray(text[-1:], np.int32))
    np.testing.assert_array_equal(text[1:], reference(model, [[5]], 15)[0])
    with pytest.raises(TfspeedError, match=r"cache is full.*capacity=16"):
        session.step(np.asarray([1], np.int32))


def test_a_request_longer_than_the_context_is_refused_before_it_runs():
    engine = create("litert", tiny_decoder())
    with pytest.raises(TfspeedError, match="new_tokens=90"):
        engine.generate([list(range(10))], 90)
    assert engine.traces == 0
    assert generate(engine, [list(range(10))], 86).shape == (1, 86)  # all of it


def test_no_room_for_the_file(monkeypatch):
    def full(self, path, durable=True):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TfliteFile, "write", full)
    with pytest.raises(TfspeedError, match=r"No space left.*TMPDIR"):
        generate(create("litert", tiny_decoder()), [[1]], 2)


def test_engines_that_are_dropped_leave_nothing():
    config = DecoderConfig(vocabulary_size=8000, num_layers=4, hidden_dim=256, num_heads=4,
                           num_kv_heads=2, head_dim=64, mlp_dim=1024, context_length=512)
    model = DecoderModel("model", Decoder(config))
    weights = model.weights_bytes
    process, memory = psutil.Process(), []
    for _ in range(10):
        engine = create("litert", model)
        generate(engine, [[1, 2, 3] * 20, [4]], 4)
        engine.score(np.zeros((1, 32), np.int32))
        del engine
        memory.append(process.memory_info().rss)
    assert memory[9] <= 1.1 * memory[1]
    assert memory[9] - memory[1] < 2 * weights  # eight engines more hold 16 copies or so
