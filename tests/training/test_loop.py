"""The loop: it learns, alike on one device and on replicas, and goes on where it was cut off."""

import functools
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

from strategies.mirrored import Mirrored, Options
from tests.conftest import MODELS, tiny_decoder
from tfspeed.compression.copying import copied, renew
from tfspeed.errors import TfspeedError
from tfspeed.training import TrainOptions, loop, text, train
from tfspeed.training.learning import every
from tfspeed.training.loop import batches

WINDOWS = np.random.default_rng(1).integers(0, 64, (10, 12), np.int32)
BUDGET = 10 * 12  # ten windows, in batches of 4, 4 and 2


def damaged(teacher):
    """A copy whose matrices are off by a tenth of their spread."""
    student = copied(teacher)
    random = np.random.default_rng(2)
    for variable in student.keras_model.trainable_variables:
        array = variable.numpy()
        if array.ndim > 1:
            renew(variable, array + 0.1 * array.std() * random.normal(size=array.shape))
    return student


def options(**changes):
    return TrainOptions(**{"tokens": BUDGET, "learning_rate": 1e-3, **changes})


def weights(model):
    return [v.numpy() for v in model.keras_model.weights]


def trained(teacher, **changes):
    student = damaged(teacher)
    return student, train(student, teacher, WINDOWS, options(**changes))


@functools.cache
def whole(mode, tokens):
    """Weights and result of a run on one device that nothing interrupts."""
    student, result = trained(tiny_decoder(), trainable=mode, rank=4, tokens=tokens)
    return weights(student), result


def test_windows_longer_than_the_context_are_cut_before_they_are_counted(monkeypatch):
    class Engine:
        def generate(self, prompts, count, sampling):
            return iter(np.zeros((count, len(prompts)), np.int32))

    model = tiny_decoder()  # a context of 96
    assert text.windows(model, None, 10 * 96, 100_000).shape == (10, 96)
    monkeypatch.setattr(text.engines, "create", lambda *_: Engine())
    assert text.written(model, 3 * 96, 100_000).shape == (3, 96)


def test_what_is_heard_is_read_once_and_no_other_text():
    model = tiny_decoder()
    model.said = np.asarray([[1, 2, 3, 9, 1, 2, 3, 9, 1, 2], [1, 2, 4, 5, 6, 9, 1, 2, 4, 5]])
    np.testing.assert_array_equal(text.windows(model, None, 100, 256), model.said[:, :6])
    assert text.windows(model, None, 100, 4).shape == (2, 4)
    model.said = model.said[:, :5]  # too long for a window
    assert text.windows(model, None, 100, 256).shape == (2, 5)


def test_held_windows_are_judged_by_and_not_learned_from():
    teacher = tiny_decoder()
    student, result = trained(teacher, tokens=5 * BUDGET)
    assert result["held_first"] is result["held_last"] is None
    changed, made = WINDOWS.copy(), []
    changed[[2, 7]] = changed[[2, 7]][:, ::-1]  # other text where nothing is learned
    for windows in (WINDOWS, changed):
        student = damaged(teacher)
        made.append((train(student, teacher, windows, options(tokens=5 * BUDGET), held=[2, 7]),
                     weights(student)))
    (found, learned), (other, same) = made
    assert found["held_last"] < found["held_first"]
    assert found["losses"] == other["losses"]
    assert found["held_first"] != other["held_first"]
    for a, b in zip(learned, same, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", MODELS)
def test_the_loss_falls_and_the_teacher_stays(kind):
    teacher = MODELS[kind]()
    before = weights(teacher)
    _, result = trained(teacher, tokens=20 * BUDGET)
    assert result["loss_last"] < 0.7 * result["loss_first"]
    assert result["steps"] == len(result["losses"]) == 50
    assert result["tokens"] == 20 * BUDGET
    for was, now in zip(before, weights(teacher), strict=True):
        np.testing.assert_array_equal(was, now)


def test_lora_learns_and_merges():
    teacher = tiny_decoder()
    student, result = trained(teacher, tokens=20 * BUDGET, trainable="lora", rank=4,
                              learning_rate=1e-2)
    assert result["loss_last"] < 0.7 * result["loss_first"]
    assert result["trained"] < student.parameters
    np.testing.assert_array_equal(student.keras_model.embedding.embeddings.numpy(),
                                  damaged(teacher).keras_model.embedding.embeddings.numpy())
    again = train(student, teacher, WINDOWS, options(learning_rate=1e-9))
    assert again["loss_first"] < 1.3 * result["loss_last"]  # the merged weights are what learned
    assert not any("lora" in v.path for v in student.keras_model.weights)


def test_lora_on_einsum_dense():
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(64, 16)(tokens)
    x = keras.layers.EinsumDense("abc,cd->abd", (None, 64))(x)
    from tfspeed.models.load import wrap
    teacher = wrap(keras.Model(tokens, x))
    _, result = trained(teacher, tokens=20 * BUDGET, trainable="lora", rank=4, learning_rate=1e-2)
    assert result["loss_last"] < 0.9 * result["loss_first"]


def replicas(count):
    return Mirrored(Options(replicas=count)).scope()


@pytest.mark.parametrize(("mode", "count"), [
    ("full", 2), pytest.param("full", 3, marks=pytest.mark.slow), ("lora", 2)])
def test_replicas_give_the_losses_of_one_device(mode, count):
    changes = {"trainable": mode, "rank": 4, "tokens": 4 * BUDGET}
    one, alone = whole(mode, 4 * BUDGET)
    with replicas(count):
        many, together = trained(tiny_decoder(), **changes)
        mirrored = weights(many)
    np.testing.assert_allclose(together["losses"], alone["losses"], rtol=1e-4)
    for a, b in zip(one, mirrored, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_every_window_is_read_once_a_round():
    read = batches(10, 12, options(tokens=2 * BUDGET))
    assert [len(b) for b in read] == [4, 4, 4, 4, 4]
    order = np.concatenate(read)
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert list(order[:10]) != list(order[10:])
    assert [len(b) for b in batches(10, 12, options())] == [4, 4, 2]
    assert [len(b) for b in batches(10, 12, options(tokens=1))] == [1]


class Killed(Exception):
    """Stands for whatever ends a process without a word."""


def kill_at(monkeypatch, step):
    one_step = loop._Run._one_step

    def killed(self, steps):
        if self.step == step:
            raise Killed
        one_step(self, steps)

    monkeypatch.setattr(loop._Run, "_one_step", killed)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_an_interrupted_run_goes_on_exactly(tmp_path, monkeypatch, mode):
    teacher = tiny_decoder()
    changes = {"tokens": 4 * BUDGET, "trainable": mode, "rank": 4}
    uninterrupted, reference = whole(mode, 4 * BUDGET)
    changes |= {"checkpoint": str(tmp_path), "checkpoint_seconds": 0}
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            trained(teacher, **changes)
    again, result = trained(teacher, **changes)
    assert result["losses"] == pytest.approx(reference["losses"], rel=1e-6)
    assert result["tokens"] == reference["tokens"] - 4 * 4 * 12
    for a, b in zip(uninterrupted, weights(again), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    third, finished = trained(teacher, **changes)  # a finished run is taken as it is
    assert finished["tokens"] == 0
    for a, b in zip(weights(third), weights(again), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_run_on_replicas_goes_on_with_one_device(tmp_path, monkeypatch):
    changes = {"tokens": 4 * BUDGET, "rank": 4}
    _, reference = whole("full", 4 * BUDGET)
    changes |= {"checkpoint": str(tmp_path), "checkpoint_seconds": 0}
    with monkeypatch.context() as patch, replicas(2):
        kill_at(patch, 3)
        teacher = tiny_decoder()
        with pytest.raises(Killed):
            trained(teacher, **changes)
    _, result = trained(tiny_decoder(), **changes)
    assert result["tokens"] == 4 * BUDGET - 3 * 4 * 12
    np.testing.assert_allclose(result["losses"], reference["losses"], rtol=1e-4)


def test_ctrl_c_saves_the_step_that_it_falls_into(tmp_path):
    teacher = tiny_decoder()
    changes = {"tokens": 2 * BUDGET, "checkpoint": str(tmp_path)}
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(damaged(teacher), teacher, WINDOWS, options(**changes),
              lambda step: signal.raise_signal(signal.SIGINT) if step == 2 else None)
    assert signal.getsignal(signal.SIGINT) is handler
    _, result = trained(teacher, **changes)
    assert result["steps"] == len(result["losses"]) == 5
    assert result["tokens"] == 3 * 4 * 12


KILLED_CHILD = """
import sys
from tests.training.test_loop import WINDOWS, damaged, options, tiny_decoder
from tfspeed.training import train
teacher = tiny_decoder()
train(damaged(teacher), teacher, WINDOWS, options(tokens=2400, checkpoint=sys.argv[1],
      checkpoint_seconds=0), lambda step: print(step, flush=True))
"""


@pytest.mark.slow
def test_kill_9_leaves_a_checkpoint(tmp_path):
    with subprocess.Popen([sys.executable, "-c", KILLED_CHILD, str(tmp_path)],
                          stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            if line.strip() == "9":
                break
        child.kill()
    teacher = tiny_decoder()
    _, reference = trained(teacher, tokens=2400)
    _, result = trained(teacher, tokens=2400, checkpoint=str(tmp_path))
    assert 8 * 48 <= 2400 - result["tokens"] < 2400  # it went on, and did not begin again
    assert result["losses"] == pytest.approx(reference["losses"], rel=1e-5)


def test_another_runs_checkpoint_is_refused(tmp_path):
    teacher = tiny_decoder()
    trained(teacher, checkpoint=str(tmp_path))
    with pytest.raises(TfspeedError, match=r"another run.*seed"):
        trained(teacher, checkpoint=str(tmp_path), seed=7)
    with pytest.raises(TfspeedError, match=r"another run.*student"):
        train(copied(teacher), teacher, WINDOWS, options(checkpoint=str(tmp_path)))
    with pytest.raises(TfspeedError, match=r"another run.*text"):
        train(damaged(teacher), teacher, WINDOWS[::-1], options(checkpoint=str(tmp_path)))
    file = tmp_path / "training.npz"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(TfspeedError, match="could not be read"):
        trained(teacher, checkpoint=str(tmp_path))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TfspeedError, match="writable"):
        trained(tiny_decoder(), checkpoint=str(tmp_path / "file"))


def test_no_half_file_is_left(tmp_path, monkeypatch):
    teacher = tiny_decoder()
    trained(teacher, checkpoint=str(tmp_path))
    good = (tmp_path / "training.npz").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TfspeedError, match="No space left"):
        train(damaged(teacher), teacher, WINDOWS, options(
            checkpoint=str(tmp_path / "other"), checkpoint_seconds=0))
    assert list((tmp_path / "other").iterdir()) == []
    assert (tmp_path / "training.npz").read_bytes() == good


def test_a_loss_that_is_not_finite_stops_with_the_last_good_weights(tmp_path):
    teacher, student = tiny_decoder(), damaged(tiny_decoder())

    def poison(step):
        if step == 2:
            table = student.keras_model.embedding.embeddings
            table.assign(table * np.nan)

    with pytest.raises(TfspeedError, match=r"no longer finite.*step=3"):
        train(student, teacher, WINDOWS, options(), poison)
    student = damaged(teacher)
    with pytest.raises(TfspeedError, match="no longer finite"):
        train(student, teacher, WINDOWS, options(learning_rate=1e30, clip=1e30, warmup=0,
                                                 tokens=10 * BUDGET))
    assert all(np.isfinite(w).all() for w in weights(student))


def test_on_step_may_hold_weights_at_zero():
    student, steps = damaged(tiny_decoder()), []

    def mask(step):
        steps.append(step)
        kernel = student.keras_model.blocks[0].mlp.down.kernel
        kernel.assign(kernel.numpy() * (np.arange(16) % 2))

    train(student, tiny_decoder(), WINDOWS, options(), mask)
    assert steps == [1, 2, 3]
    kernel = student.keras_model.blocks[0].mlp.down.kernel.numpy()
    assert not kernel[:, ::2].any()
    assert kernel[:, 1::2].any()
    with pytest.raises(TfspeedError, match="lora"):
        train(student, None, WINDOWS, options(trainable="lora"), mask)


def test_without_a_teacher_it_learns_the_text():
    student = tiny_decoder()
    result = train(student, None, WINDOWS, options(tokens=20 * BUDGET, learning_rate=1e-2))
    assert result["loss_last"] < 0.7 * result["loss_first"]


def test_a_model_without_float32_weights_is_refused():
    student = tiny_decoder()
    for variable in student.keras_model.weights:
        variable.trainable = False
    with pytest.raises(TfspeedError, match="no float32 weights"):
        train(student, None, WINDOWS, options())


def test_layers_of_integers_do_not_learn():
    class Packed(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.integers = self.add_weight(shape=(4,), dtype="int8", initializer="zeros",
                                            trainable=False)
            self.scale = self.add_weight(shape=(4,))

    model = keras.Sequential([Packed(), keras.layers.Dense(3)])
    model.layers[1].build((None, 4))
    assert [v.name for v in every(model)] == ["kernel", "bias"]


@pytest.mark.parametrize("bad", [
    {"tokens": 0}, {"tokens": -5}, {"batch": 0}, {"rank": 0}, {"trainable": "some"},
    {"learning_rate": -1.0}, {"learning_rate": float("nan")}, {"temperature": 0.0},
    {"cross_entropy": 1.5}, {"clip": 0.0}, {"warmup": -0.1}])
def test_bad_options_are_refused(bad):
    with pytest.raises(TfspeedError, match=next(iter(bad))):
        TrainOptions(**bad)


def test_bad_input_is_refused():
    with pytest.raises(TfspeedError, match="rank"):
        trained(tiny_decoder(), trainable="lora", rank=16)
    with pytest.raises(TfspeedError, match="Dense"):
        trained(MODELS["lstm"](), trainable="lora", rank=2)
    for windows in (WINDOWS[0], WINDOWS[:0], WINDOWS[:, :1], np.zeros((2, 97), np.int32)):
        with pytest.raises(TfspeedError, match="windows"):
            train(tiny_decoder(), None, windows, options())


def test_the_rate_rises_and_falls():
    rates = [options(learning_rate=1.0).rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.001
