"""Encoder–decoders: the cache changes nothing, engines and loaders agree."""

import dataclasses
import json

import numpy as np
import pytest

from tests.models.seq2seq import (
    SHAPES,
    ctranslate2_bytes,
    save_ctranslate2,
    save_hf,
    sources,
    tiny,
)
from tfspeed.engines import create
from tfspeed.errors import TfspeedError
from tfspeed.models.encoder_decoder_config import EncoderDecoderConfig
from tfspeed.models.load import load
from tfspeed.models.whisper_tokens import WhisperTokens

PROMPTS = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6]]
SLOW = pytest.mark.slow
EVERY = ["whisper", "t5", *(pytest.param(name, marks=SLOW) for name in ("bart", "t5_gated"))]


def generated(engine, prompts, source, new_tokens=6, stop=()):
    encoded = None if source is None else engine.encode(source)
    return np.stack(list(engine.generate(prompts, new_tokens, stop_tokens=stop, encoded=encoded)),
                    axis=1)


def by_scoring(model, prompt, source, new_tokens=6):
    """Greedy, reading the whole text for each token."""
    tokens, encoded = list(prompt), model.encode(model.checked_source(source))
    for _ in range(new_tokens):
        logits = model.given(encoded).score(np.asarray([tokens], np.int32))
        tokens.append(int(np.argmax(logits[0, -1])))
    return tokens[len(prompt):]


@pytest.mark.parametrize("shape", EVERY)
def test_the_cache_changes_nothing(shape):
    model = tiny(shape)
    source, engine = sources(model), create("graph", model)
    together = generated(engine, PROMPTS, source)
    for i, prompt in enumerate(PROMPTS):
        assert together[i].tolist() == by_scoring(model, prompt, source[i:i + 1])
    # What was encoded may be used again, and says something.
    encoded = engine.encode(source)
    first = np.stack(list(engine.generate(PROMPTS, 6, encoded=encoded)), 1)
    np.testing.assert_array_equal(first, together)
    other = generated(engine, PROMPTS, source[::-1])
    assert (other != together).any()


@SLOW
def test_xla_gives_the_tokens_of_graph():
    model = tiny("whisper")
    source = sources(model)
    np.testing.assert_array_equal(generated(create("xla", model), PROMPTS, source),
                                  generated(create("graph", model), PROMPTS, source))


@pytest.mark.parametrize("shape", ["whisper", "t5"])
def test_without_a_source_nothing_was_said(shape):
    model = tiny(shape)
    engine = create("graph", model)
    np.testing.assert_array_equal(generated(engine, PROMPTS, None),
                                  generated(engine, PROMPTS, model.default_source(3)))
    tokens = np.asarray([[1, 2, 3]], np.int32)
    np.testing.assert_allclose(engine.score(tokens), model.score(tokens), atol=1e-4)


def test_suppressed_tokens_never_come():
    model = tiny("whisper")
    source, engine = sources(model), create("graph", model)
    plain = generated(engine, PROMPTS, source)
    model.suppressed = tuple(set(plain[:, 1:].ravel().tolist()))
    model.suppressed_first = tuple(set(plain[:, 0].tolist()))
    changed = generated(create("graph", model), PROMPTS, source)
    assert not set(changed.ravel().tolist()) & set(model.suppressed)
    assert not set(changed[:, 0].tolist()) & set(model.suppressed_first)


@pytest.mark.parametrize("shape", SHAPES)
def test_hugging_face_folders(tmp_path, shape):
    model = tiny(shape)
    if shape == "whisper":  # its keys have no bias
        for block in model.keras_model.decoder + model.keras_model.encoder:
            width = 16
            for layer, at in ((block.attention.query_key_value, 1),
                              *([(block.cross.key_value, 0)] if block.crosses else [])):
                bias = layer.bias.numpy()
                bias[at * width:(at + 1) * width] = 0
                layer.bias.assign(bias)
    if shape == "bart":  # one length for both sides
        model = tiny(shape, context_length=20)
    save_hf(model, tmp_path / "m")
    loaded = load(tmp_path / "m")
    source, tokens = sources(model), np.asarray([[1, 2, 3, 4]] * 3, np.int32)
    for one, other in ((model, loaded),):
        want = one.given(one.encode(one.checked_source(source))).score(tokens)
        have = other.given(other.encode(other.checked_source(source))).score(tokens)
        np.testing.assert_allclose(have, want, atol=1e-5)
    if shape == "whisper":
        assert set(loaded.suppressed) >= {3, 5}
        assert loaded.suppressed_first == (7,)
        assert loaded.tokenizer.eos_ids == (55,)


@pytest.mark.parametrize("dtype", ["float16", pytest.param("float32", marks=SLOW)])
def test_ctranslate2_folders(tmp_path, dtype):
    model = tiny("whisper")
    for variable in model.keras_model.weights:
        variable.assign(variable.numpy().astype(dtype))
    save_ctranslate2(model, tmp_path / "m", np.dtype(dtype))
    loaded = load(tmp_path / "m")
    assert dataclasses.replace(loaded.config, suppressed=(), suppressed_first=()) == model.config
    tokens, source = np.asarray([[1, 2, 3, 4]] * 3, np.int32), sources(model)
    np.testing.assert_array_equal(loaded.given(loaded.encode(source)).score(tokens),
                                  model.given(model.encode(source)).score(tokens))
    whisper = WhisperTokens.of(loaded.tokenizer)
    assert whisper.languages.keys() == {"en", "de"}
    assert whisper.prompt("de", "translate") == [56, 58, 59, 62]
    assert set(range(56, 64)) | {3, 5} == set(loaded.suppressed)
    for language, task in (("xx", "transcribe"), ("en", "sing")):
        with pytest.raises(TfspeedError):
            whisper.prompt(language, task)
    assert loaded.reload().parameters == model.parameters


def _damaged(raw):
    yield "truncated", raw[:-1]
    yield "truncated", raw[:len(raw) // 2]
    yield "damaged", raw[:4] + raw[4:].replace(b"layer_0", b"layer_9")
    yield "version", b"\5" + raw[1:]
    yield "kind", raw.replace(b"WhisperSpec", b"TransfoSpec")
    for at in range(20, 400, 31):  # flipped bits in the header and the first entries
        yield "flipped", raw[:at] + bytes([raw[at] ^ 0x85]) + raw[at + 1:]


def test_a_damaged_model_bin_is_told(tmp_path):
    model = tiny("whisper")
    save_ctranslate2(model, tmp_path / "m")
    file = tmp_path / "m" / "model.bin"
    for kind, raw in _damaged(file.read_bytes()):
        file.write_bytes(raw)
        try:
            loaded = load(tmp_path / "m")
        except TfspeedError:
            continue
        assert kind == "flipped"  # in a weight, or a name that no config asks for
        assert loaded.parameters == model.parameters


def test_integers_of_ctranslate2_are_refused(tmp_path):
    model = tiny("whisper")
    save_ctranslate2(model, tmp_path / "m")
    (tmp_path / "m" / "model.bin").write_bytes(ctranslate2_bytes(model, np.int8))
    with pytest.raises(TfspeedError, match="must be floats"):
        load(tmp_path / "m")


def test_a_folder_that_lacks_or_exceeds_is_refused(tmp_path):
    save_hf(tiny("t5"), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    for changes, message in (({"num_layers": 3}, "missing"), ({"num_layers": 1}, "no place"),
                             ({"d_ff": 31}, "shape"), ({"d_kv": "4"}, "positive integer"),
                             ({"feed_forward_proj": "swish"}, "not known")):
        (tmp_path / "m" / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(TfspeedError, match=message):
            load(tmp_path / "m")


@pytest.mark.parametrize("shape", ["whisper", pytest.param("bart", marks=SLOW)])
def test_a_keras_file_brings_it_back(tmp_path, shape):
    model = tiny(shape, suppressed=(3, 4))
    model.keras_model.save(tmp_path / "m.keras")
    loaded, source = load(tmp_path / "m.keras"), sources(model)
    assert loaded.suppressed == (3, 4)
    np.testing.assert_array_equal(generated(create("graph", loaded), PROMPTS, source),
                                  generated(create("graph", model), PROMPTS, source))


def test_parameters_are_counted():
    for shape in SHAPES:
        model = tiny(shape)
        assert model.parameters == model.config.parameter_count


def test_bad_sources_are_refused():
    audio, text = tiny("whisper"), tiny("t5")
    for source in (np.zeros((1, 39, 8)), np.zeros((40, 8)), np.full((1, 40, 8), np.nan)):
        with pytest.raises(TfspeedError):
            audio.checked_source(source)
    for source in ([], [[]], [[64]], [[1] * 21]):
        with pytest.raises(TfspeedError):
            text.checked_source(source)
    with pytest.raises(TfspeedError):
        create("fused", audio)
    with pytest.raises(TfspeedError):
        EncoderDecoderConfig(**tiny("t5").config.to_dict() | {"num_heads": 0})


@SLOW
def test_low_precision():
    model = tiny("whisper")
    source = sources(model)
    half = type(model.keras_model)(model.config, dtype="bfloat16")
    half.set_weights(model.keras_model.get_weights())
    made = generated(create("graph", type(model)("half", half)), PROMPTS, source, 2)
    assert made.shape == (3, 2)


@pytest.mark.parametrize("shape", ["whisper", *(pytest.param(name, marks=SLOW) for name in
                                                ("bart", "t5", "t5_gated"))])
def test_litert_gives_the_tokens_of_graph(shape):
    model = tiny(shape)
    source, litert, graph = sources(model), create("litert", model), create("graph", model)
    want = generated(graph, PROMPTS, source)
    np.testing.assert_array_equal(generated(litert, PROMPTS, source), want)
    # Two sources at a time, each with its own memory, and texts longer than the first cache.
    one, other = litert.encode(source[:1]), litert.encode(source[1:2])
    for encoded, row in ((one, 0), (other, 1), (one, 0)):
        made = np.stack(list(litert.generate([PROMPTS[row]], 6, encoded=encoded)), 1)
        np.testing.assert_array_equal(made[0], want[row])
    tokens = np.asarray([[1, 2, 3, 4]], np.int32)
    np.testing.assert_allclose(litert.score(tokens, one),
                               graph.score(tokens, graph.encode(source[:1])), atol=1e-3)


@pytest.mark.parametrize("shape", ["t5", "t5_gated"])
def test_relative_positions_under_litert(shape):
    model = tiny(shape, encoder_layers=1, decoder_layers=1, source_length=40, relative_buckets=8,
                 relative_distance=12)
    prompt, source, engine = list(range(1, 20)), [list(range(30))], create("litert", model)
    encoded = engine.encode(source)
    made = np.ravel(list(engine.generate([prompt], 6, encoded=encoded)))
    text = np.asarray([[*prompt, *made]], np.int32)
    want = model.given(model.encode(model.checked_source(source))).score(text)
    np.testing.assert_allclose(engine.score(text, encoded), want, atol=1e-3)
    np.testing.assert_array_equal(made, np.argmax(want[0, 18:-1], -1))


def test_litert_in_integers_and_what_it_refuses():
    model = tiny("whisper", context_length=100)
    source = sources(model, 1)
    engine, graph = create("litert:int8", model), create("graph", model)
    tokens = np.asarray([list(range(1, 9))], np.int32)
    near = engine.score(tokens, engine.encode(source))
    exact = graph.score(tokens, graph.encode(source))
    assert 0 < np.abs(near - exact).max() < 0.2 * np.abs(exact).max()
    assert engine.weights_bytes < 0.4 * graph.weights_bytes
    assert len(list(engine.generate([PROMPTS[0]], 90, encoded=engine.encode(source)))) == 90
    model.suppressed = tuple(range(0, 60))
    made = generated(create("litert:int8", model), [PROMPTS[0]], source)
    assert (made >= 60).all()
    for layer in ("haed", "block_77"):
        with pytest.raises(TfspeedError, match=f"layer='{layer}=int4'"):
            create(f"litert:int8,{layer}=int4", model)
    for layer in ("convolution_1", "encoder.*up", "cross/query", "^head"):
        create(f"litert:int8,{layer}=float16", model)


def test_a_server_and_drafts_say_why_not():
    from tfspeed.serving import backend

    for engine in ("graph", "fused"):
        with pytest.raises(TfspeedError):
            backend.create(engine, tiny("whisper"))
    model = tiny("whisper")
    assert create("litert", model).step_bytes(1, 10) > 0
    assert model.step_bytes(1, 10) < model.weights_bytes + 10**6
