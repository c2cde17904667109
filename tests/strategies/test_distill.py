"""Recovery as a strategy: teachers, texts, compositions, and what is refused."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import strategies
from strategies import mirrored, prune_structured
from strategies.distill import Distill, Options
from tests.conftest import tiny_decoder
from tests.models.seq2seq import sources, tiny
from tests.training.test_loop import damaged, weights
from tfspeed.errors import TfspeedError
from tfspeed.training import text

SMALL = Options(tokens=4800, length=12, learning_rate=3e-3)


def loaded(teacher=tiny_decoder):
    """A damaged model that knows where it came from."""
    student = damaged(teacher())
    student.reload = teacher
    return student


def distance(model, teacher):
    """KL divergence between their next tokens, on random text."""
    tokens = np.random.default_rng(5).integers(0, 64, (4, 24), np.int32)
    p, q = (tf.nn.log_softmax(m.score(tf.constant(tokens))) for m in (teacher, model))
    return float(tf.reduce_mean(tf.reduce_sum(tf.exp(p) * (p - q), -1)))


@pytest.mark.parametrize("changes", [
    {}, {"trainable": "lora", "rank": 4, "learning_rate": 1e-2}, {"data": "self"},
    {"temperature": 2.0}])
def test_it_comes_closer_to_the_original(changes):
    model = loaded()
    before = weights(model)
    strategy = Distill(dataclasses.replace(SMALL, **changes))
    made = strategy.apply(model)
    assert distance(made, tiny_decoder()) < 0.8 * distance(model, tiny_decoder())
    for was, now in zip(before, weights(model), strict=True):
        np.testing.assert_array_equal(was, now)
    report = " ".join(strategy.report())
    assert "4800 tokens" in report
    assert ("rank 4" in report) == (changes.get("trainable") == "lora")


def test_weights_that_came_no_closer_stay_as_they_were():
    model = loaded()
    strategy = Distill(dataclasses.replace(SMALL, tokens=480, learning_rate=0.3))
    for was, now in zip(weights(model), weights(strategy.apply(model)), strict=True):
        np.testing.assert_array_equal(was, now)
    assert "the weights stay as they were" in " ".join(strategy.report())


def test_weights_learn_to_be_rounded():
    """Quantization-aware: what is trained for four bits loses less by them."""
    model = tiny_decoder()
    model.reload = tiny_decoder
    # So small a model depends on the order of its windows: 0.60, 0.79, 0.84 of three.
    aware = Options(tokens=20_000, length=12, learning_rate=5e-4, bits=4, group=0, seed=1)
    rounding = strategies.find("quantize").Options(bits=4, group=0, method="rtn", smooth=False)
    plain = strategies.create("quantize", {"quantize": rounding}).apply(model)
    strategy = strategies.create("distill+quantize", {"distill": aware, "quantize": rounding})
    made = strategy.apply(model)
    assert made.weights_bytes == plain.weights_bytes < model.weights_bytes / 3
    assert distance(made, model) < 0.8 * distance(plain, model)
    assert "rounded to 4 bits" in " ".join(strategy.report())
    with pytest.raises(TfspeedError, match="learns to be rounded"):
        Distill(dataclasses.replace(aware, trainable="lora"))


def test_it_composes_with_mirrored():
    # Ten steps: Adam's first ones follow the signs of gradients, and rounding errors grow.
    options = {"distill": dataclasses.replace(SMALL, tokens=480, learning_rate=1e-3),
               "mirrored": mirrored.Options(replicas=2)}
    learning = strategies.create("distill", options)
    alone = learning.apply(loaded())
    assert "stay as they were" not in " ".join(learning.report())
    for names in ("distill+mirrored", "mirrored+distill"):
        strategy = strategies.create(names, options)
        with strategy.scope():
            made = strategy.apply(loaded())
            for a, b in zip(weights(alone), weights(made), strict=True):
                np.testing.assert_allclose(a, b, atol=3e-4)
        assert len(made.placement.devices) > 1


@pytest.mark.parametrize("before", ["low_rank", "prune_structured", "quantize"])
@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_it_recovers_what_other_strategies_leave(before, trainable):
    rate = {"full": 1e-4, "lora": 3e-3}[trainable]
    options = {"distill": dataclasses.replace(SMALL, trainable=trainable, rank=2,
                                              learning_rate=rate),
               "prune_structured": prune_structured.Options(fraction=0.4)}
    model = tiny_decoder()
    model.reload = tiny_decoder
    changed = strategies.create(before, options).apply(model)
    if before == "quantize" and trainable == "lora":
        with pytest.raises(TfspeedError, match="Dense"):
            strategies.create("distill", options).apply(changed)
        return
    made = strategies.create("distill", options).apply(changed)
    if before != "quantize":  # eight bits leave nothing to recover
        assert distance(made, tiny_decoder()) < distance(changed, tiny_decoder())
    assert [v.shape for v in made.keras_model.weights] == \
        [v.shape for v in changed.keras_model.weights]


def heard_well(shape):
    """A damaged encoder–decoder that knows where it came from, and hears something."""
    model = damaged(tiny(shape))
    model.reload = lambda: tiny(shape)
    if model.config.source == "audio":
        model.heard = sources(model, 3)
    return model


def loss_of_hearing(model, teacher):
    """KL divergence between their next tokens, after sources of which none was trained on."""
    text = tf.constant(np.random.default_rng(5).integers(0, 64, (4, 12), np.int32))
    source = teacher.checked_source(sources(teacher, 4))
    p, q = (tf.nn.log_softmax(m.given(m.encode(source)).score(text)) for m in (teacher, model))
    return float(tf.reduce_mean(tf.reduce_sum(tf.exp(p) * (p - q), -1)))


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "changes"), [
    ("whisper", {}), ("bart", {}), ("t5", {}),
    ("t5", {"data": "self", "learning_rate": 1e-3, "tokens": 7200}),
    ("whisper", {"trainable": "lora", "rank": 4, "learning_rate": 1e-2})])
def test_both_sides_of_an_encoder_decoder_learn(shape, changes):
    model, teacher = heard_well(shape), tiny(shape)
    strategy = Distill(dataclasses.replace(SMALL, **{"tokens": 2400} | changes))
    made = strategy.apply(model)
    assert loss_of_hearing(made, teacher) < 0.95 * loss_of_hearing(model, teacher)
    was, now = (m.keras_model.encoder[0].mlp.up.kernel.numpy() for m in (model, made))
    assert np.abs(was - now).max() > 0
    assert "sources" in strategy.report()[-1]


@pytest.mark.slow
def test_a_model_that_hears_learns_to_be_rounded():
    model = tiny("whisper")
    model.reload, model.heard = lambda: tiny("whisper"), sources(model, 3)
    options = {"distill": Options(tokens=4800, length=12, learning_rate=1e-3, bits=4),
               "quantize": strategies.find("quantize").Options(bits=4, method="rtn")}
    plain = strategies.create("quantize", options).apply(model)
    made = strategies.create("distill+quantize", options).apply(model)
    assert made.weights_bytes == plain.weights_bytes
    assert loss_of_hearing(made, model) < 0.9 * loss_of_hearing(plain, model)


def test_a_model_that_hears_is_not_trained_on_silence():
    model = tiny("whisper")
    model.reload = lambda: tiny("whisper")
    with pytest.raises(TfspeedError, match="needs sounds"):
        Distill(SMALL).apply(model)


def test_zeros_of_a_pruned_matrix_stay():
    model = loaded()
    kernel = model.keras_model.blocks[1].mlp.up.kernel
    mask = np.random.default_rng(3).random(kernel.shape) < 0.5
    kernel.assign(kernel.numpy() * mask)
    made = Distill(SMALL).apply(model).keras_model.blocks[1].mlp.up.kernel.numpy()
    assert not made[~mask].any()
    assert np.abs(made - kernel.numpy()).max() > 0
    with pytest.raises(TfspeedError, match="zeros"):
        Distill(dataclasses.replace(SMALL, trainable="lora", rank=2)).apply(model)


def test_a_second_command_takes_the_trained_weights(tmp_path):
    options = dataclasses.replace(SMALL, checkpoint=str(tmp_path), data="self")
    first = Distill(options)
    made = first.apply(loaded())
    second = Distill(options)
    again = second.apply(loaded())
    for a, b in zip(weights(made), weights(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert "nothing was left to do" in second.report()[0]
    with pytest.raises(TfspeedError, match="another run"):
        Distill(dataclasses.replace(options, learning_rate=1e-4)).apply(loaded())


def test_what_the_teacher_writes():
    teacher = tiny_decoder()
    made = text.written(teacher, 100, 10, seed=3)
    assert made.shape == (10, 10)
    assert made.dtype == np.int32
    assert ((made >= 0) & (made < 64)).all()
    assert len(np.unique(made, axis=0)) == 10
    np.testing.assert_array_equal(made, text.written(teacher, 100, 10, seed=3))
    likely = float(tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(
        made[:, 1:], teacher.score(tf.constant(made))[:, :-1])))
    assert likely < np.log(64)  # likelier than any text


def test_a_model_without_an_original_is_refused():
    with pytest.raises(TfspeedError, match="distill_teacher=MODEL"):
        Distill(SMALL).apply(tiny_decoder())
    other = loaded(lambda: tiny_decoder(vocabulary_size=32))
    other.reload = tiny_decoder
    with pytest.raises(TfspeedError, match="vocabulary"):
        Distill(SMALL).apply(other)


@pytest.mark.parametrize("bad", [{"tokens": 0}, {"data": "web"}, {"length": 1}, {"rank": 0},
                                 {"batch": -1}, {"trainable": "none"}, {"seed": -1}])
def test_bad_options_are_refused_before_anything_is_loaded(bad):
    with pytest.raises(TfspeedError, match=next(iter(bad))):
        Distill(Options(**bad))


def test_text_shorter_than_a_window_is_refused():
    class Letters:
        def encode(self, data):
            return [ord(c) % 64 for c in data]

    model = loaded()
    model.tokenizer = Letters()
    with pytest.raises(TfspeedError, match="too short"):
        Distill(SMALL).apply(model, "short")
