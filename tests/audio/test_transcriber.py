"""Windows, recordings and streams, over a tiny Whisper of random weights."""

import dataclasses
import weakref

import numpy as np
import pytest

from tests.conftest import tiny_decoder
from tests.models.seq2seq import save_ctranslate2, tiny
from tfspeed.audio.log_mel import RATE
from tfspeed.audio.partials import stream, takes_back
from tfspeed.audio.transcriber import Options, Transcriber, repeats
from tfspeed.audio.windows import windows
from tfspeed.engines import create
from tfspeed.errors import TfspeedError
from tfspeed.models.load import load
from tfspeed.scenarios.speech_stream import spoken


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper") / "tiny"
    save_ctranslate2(tiny("whisper", source_length=60), folder)  # windows of 1.2 s
    return create("graph", load(folder))


@pytest.fixture(scope="module")
def litert(engine):
    return create("litert", engine.model)


@pytest.fixture
def transcriber(engine):
    return Transcriber(engine, Options(no_speech_threshold=1.0, new_tokens=5))


def noise(seconds, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


def test_a_window(transcriber):
    window = transcriber.window(noise(1))
    assert window.text
    assert 0 < window.no_speech < 1
    assert len(window.tokens) <= 5
    assert window.seconds == 1
    assert not set(window.tokens) & set(transcriber.engine.model.suppressed)


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros(RATE), noise(0.05),
                                     np.full(RATE, 5e-5)])
def test_silence_has_no_text_and_runs_nothing(engine, samples):
    window = Transcriber(engine).window(samples.astype(np.float32))
    assert (window.text, window.tokens, window.encode_s) == ("", [], 0)


@pytest.mark.parametrize("batch", [2, 5])
def test_windows_that_are_read_together(litert, batch):
    options = Options(no_speech_threshold=0.0, logprob_threshold=-1e9, new_tokens=5)
    sounds = [("a", noise(1)), ("quiet", np.zeros(RATE, np.float32)), ("b", noise(0.8, 1)),
              ("c", noise(1.1, 2)), ("end", np.zeros(0, np.float32))]
    alone = Transcriber(litert, options, 0)
    assert alone.batch == 1  # one device
    found = list(Transcriber(litert, options, batch).windows(iter(sounds)))
    assert [name for name, _ in found] == [name for name, _ in sounds]
    for (_, samples), (_, window) in zip(sounds, found, strict=True):
        want = alone.window(samples)
        assert (window.text, window.tokens) == (want.text, want.tokens)
        assert window.seconds == want.seconds
    sure = Transcriber(litert, dataclasses.replace(options, logprob_threshold=0.0), batch)
    assert {w.text for _, w in sure.windows(iter(sounds))} == {""}


def test_what_the_model_holds_for_silence_has_no_text(engine, transcriber):
    said = transcriber.window(noise(1))
    doubted = Transcriber(engine, Options(no_speech_threshold=said.no_speech / 2,
                                          logprob_threshold=0.0, new_tokens=5))
    assert doubted.window(noise(1)).text == ""
    # One that is sure of its words keeps them.
    sure = Transcriber(engine, dataclasses.replace(doubted.options, logprob_threshold=-1e9))
    assert sure.window(noise(1)).text == said.text


def test_a_loop_in_what_may_be_silence_has_no_text(engine, monkeypatch):
    """White noise in Korean: 224 tokens of the same four words, sure of each, no speech 0.92."""
    said = Transcriber(engine).window(noise(1))
    sure = Transcriber(engine, Options(no_speech_threshold=said.no_speech / 2,
                                       logprob_threshold=-1e9, new_tokens=5))
    assert sure.window(noise(1)).text
    monkeypatch.setattr(sure._tokenizer, "decode", lambda tokens: "and so on " * 30)
    assert sure.window(noise(1)).text == ""
    heard = dataclasses.replace(sure.options, no_speech_threshold=1.0)
    assert Transcriber(engine, heard).window(noise(1)).text  # it may have been said


def test_what_repeats():
    assert repeats("I do not know. " * 12)
    assert not repeats("")
    assert not repeats("Had he married a more amiable woman, he might have been made still more "
                       "respectable than he was.")


def test_languages(engine):
    auto = Transcriber(engine, Options("auto", no_speech_threshold=1.0, new_tokens=2))
    assert auto.window(noise(1)).language in ("en", "de")
    with pytest.raises(TfspeedError, match="no language of this code"):
        Transcriber(engine, Options("klingon"))
    with pytest.raises(TfspeedError, match="task"):
        Transcriber(engine, Options(task="summarize"))
    with pytest.raises(TfspeedError, match="Whisper"):
        Transcriber(create("graph", tiny_decoder()))


def test_silence_is_not_kept_until_others_are_read(litert):
    made, kept = Transcriber(litert, batch=2), []

    def sounds():
        for i in range(20):
            samples = noise(1) if i == 3 else np.zeros(RATE, np.float32)
            kept.append(weakref.ref(samples))
            yield i, samples
            del samples
        yield 20, noise(1)

    found = iter(made.windows(sounds()))
    assert next(found)[0] == 0
    assert sum(ref() is not None for ref in kept) == 1  # the one with a sound in it
    assert [i for i, _ in found] == list(range(1, 21))


def recording(made, blocks):
    """The windows of a recording."""
    cut = windows(blocks, made.window_samples)
    return [window for _, window in made.windows((None, samples) for samples in cut)]


def test_long_sound_is_cut_where_it_is_quiet(transcriber):
    sound = noise(3)
    quiet = slice(int(1.0 * RATE), int(1.15 * RATE))
    sound[quiet] *= 0.01
    found = recording(transcriber, np.split(sound, 30))
    assert found[0].seconds == pytest.approx(1.075, abs=0.05)
    assert sum(w.seconds for w in found) == pytest.approx(3)
    assert all(w.seconds <= 1.2 for w in found)


def test_a_long_silence_is_never_held(transcriber):
    blocks = (np.zeros(RATE, np.float32) for _ in range(100))
    assert {w.text for w in recording(transcriber, blocks)} == {""}


def test_a_stream_ends_with_what_a_recording_gives(transcriber):
    sound = noise(2.6)
    partials = list(stream(transcriber, np.split(sound, 26), chunk_s=0.5))
    assert [p.revision for p in partials] == list(range(len(partials)))
    assert [p.end for p in partials] == [False] * (len(partials) - 1) + [True]
    assert len(partials) == 6
    whole = " ".join(w.text for w in recording(transcriber, [sound]))
    assert partials[-1].text == whole
    assert partials[-1].heard_s == pytest.approx(2.6)
    found = spoken(iter(partials))  # as they come: a stream may last for hours
    assert found["text"] == whole
    # What is settled is not kept again with each result.
    assert found["texts"][-1] == partials[-1].open_text
    assert whole.endswith(partials[-1].open_text)
    assert partials[-1].open_text != whole


def test_what_is_taken_back():
    assert not takes_back("", "a")
    assert not takes_back("he was", "He was, not")
    assert takes_back("he was", "he")
    assert takes_back("he was", "she was not")


def test_times_of_a_stream_that_is_spoken(transcriber):
    partials = list(stream(transcriber, [noise(1.5)], chunk_s=0.5))
    partials = [dataclasses.replace(p, heard_s=h, work_s=w, text=t, revised=False) for p, h, w, t in
                zip(partials * 3, (1.0, 2.0, 2.5), (0.5, 1.0, 0.25), ("", "a", "a b"),
                    strict=False)]
    found = spoken(partials[:3]) if len(partials) >= 3 else spoken(partials)
    assert found["partials"] == len(partials[:3])
    assert found["first_partial_s"] == 3.0  # 2.0 is heard, and takes a second
    assert found["final_lag_s"] == 0.75  # 2.5 waits until 3.0
