"""The scenarios' script: rows, texts, mistakes."""

import io
import json
import sys
import types

import numpy as np
import pytest

from tests.audio.test_wav import tone, written
from tests.models.seq2seq import save_ctranslate2, save_hf, tiny
from tests.scripts import forked
from tfspeed import peers
from tfspeed.audio import clips
from tfspeed.audio.partials import Partial
from tfspeed.audio.transcriber import Options, Transcriber
from tfspeed.compression import calibration
from tfspeed.engines import create
from tfspeed.errors import TfspeedError
from tfspeed.measure.progress import Progress
from tfspeed.models.load import load
from tfspeed.scenarios import job, pairs, speech_job, speech_peers, speech_stream


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every call, in forks of one process: exit code, output, errors, and the folder."""
    pytest.importorskip("sacrebleu")
    folder = tmp_path_factory.mktemp("scenario")
    save_ctranslate2(tiny("whisper", source_length=60), folder / "whisper")
    save_hf(tiny("t5"), folder / "t5")
    (folder / "clips").mkdir()
    written(folder / "clips" / "one.wav", tone(44100), 44100)
    written(folder / "clips" / "quiet.wav", np.zeros(16000))
    written(folder / "clips" / "empty.wav", [])
    (folder / "said").write_text("<s> w1 w2 </s> (one)\nquiet\t\n")
    (folder / "broken.wav").write_bytes(b"RIFF")
    (folder / "pairs.tsv").write_text("w1 w2\tw3 w4\nw5 w6 w7\tw8\n")
    (folder / "none.tsv").write_text("no pairs here\n")
    speech = ["--scenario=speech", "--model=whisper", "--engine=graph", "--new_tokens=4"]
    text = ["--scenario=translation", "--model=t5", "--engine=graph", "--new_tokens=4"]
    calls = {
        "speech": [*speech, "--audio=clips", "--transcripts=said", "--no_speech_threshold=1",
                   "--repetitions=2", "--chunk_s=0.5", "--output=speech.json"],
        "texts": [*text, "--pairs=pairs.tsv", "--output=texts.json"],
        "together": [*text, "--pairs=pairs.tsv", "--batch=2", "--output=together.json"],
        "translated": [*speech, "--scenario=translation", "--audio=clips/one.wav", "--language=de",
                       "--transcripts=said", "--output=translated.json"],
        "no audio": speech, "broken": [*speech, "--audio=broken.wav"],
        "missing": [*speech, "--audio=nothing.wav"], "no clips": [*speech, "--audio=whisper"],
        "language": [*speech, "--audio=clips", "--language=xx"],
        "threshold": [*speech, "--audio=clips", "--no_speech_threshold=2"],
        "chunk": [*speech, "--audio=clips", "--chunk_s=0"],
        "batch": [*speech, "--audio=clips", "--batch=-1"],
        "workers": [*speech, "--audio=clips", "--workers=2"],
        "workers of a dialogue": ["--scenario=dialogue", "--workers=2"],
        "dialogue on workers": ["--scenario=dialogue", "--strategy=multi_worker"],
        "transcripts": [*speech, "--audio=clips", "--transcripts=pairs"],
        "no whisper": [*speech, "--audio=clips", "--model=t5"],
        "scenario": ["--scenario=dance"], "both": [*text, "--pairs=pairs.tsv", "--audio=clips"],
        "no pairs": [*text, "--pairs=none.tsv"], "no file": [*text, "--pairs=nothing.tsv"],
        "speech model": [*text, "--pairs=pairs.tsv", "--model=whisper"],
    }
    return dict(zip(calls, forked.calls("scenario.py", list(calls.values()), folder),
                    strict=True)), folder


def row(made, name):
    (code, _, err), folder = made[0][name], made[1]
    assert code == 0, err
    return json.loads((folder / f"{name}.json").read_text())["rows"][0]


def test_speech(made):
    found = row(made, "speech")
    clips = {clip["name"]: clip for clip in found["clips"]}
    assert found["audio_s"] == pytest.approx(2.3, abs=0.01)
    assert found["rtf"]["median"] > 0
    assert len(found["rtf"]["samples"]) == 2
    assert clips["one"]["text"]
    assert clips["quiet"]["text"] == clips["empty"]["text"] == ""
    assert clips["empty"]["windows"] == 0
    assert found["wer"] == clips["one"]["wer"] >= 0
    assert found["partials"] == sum(c["stream"]["partials"] for c in found["clips"]
                                    if "stream" in c)
    assert found["first_partial_s"]["median"] > 0.5
    assert "one.wav: " + clips["one"]["text"] in made[0]["speech"][1]


def test_strategies_calibrate_on_sounds(tmp_path):
    model = tiny("whisper", source_length=60)
    for i, hertz in enumerate((300, 900)):
        written(tmp_path / f"{i}.wav", tone(16000, hertz=hertz))
    paths = job.calibration_sounds(str(tmp_path))
    model.heard = job.heard(model, paths)
    assert model.heard.shape == (2, 120, 8)
    turns = np.concatenate([model.default_source(2), model.default_source(1)])
    np.testing.assert_array_equal(turns, model.heard[[0, 1, 0]])
    assert job.calibration_sounds("a_text.txt") == job.calibration_sounds(None) == []
    with pytest.raises(TfspeedError, match="text for this model"):
        job.heard(tiny("t5"), paths)


@pytest.mark.slow
def test_what_is_said_is_read_for_calibration(tmp_path):
    save_ctranslate2(tiny("whisper", source_length=60), tmp_path / "tiny")
    model = load(tmp_path / "tiny")
    model.heard = np.random.default_rng(0).normal(size=(2, 120, 8)).astype(np.float32)
    model.said = said = job.said(model, "auto")
    assert said.shape == (2, 32)
    assert said[0, :4].tolist() == [56, 57, 60, 62]
    windows = calibration.tokens(model, "w1 w2 w3 w4 " * 40)
    np.testing.assert_array_equal(windows[:2], said)
    assert len(windows) > 2
    # It is read after its own sound, whatever came before.
    model.said = np.asarray([[1, 2, 3, 4], [1, 2, 5, 6]], np.int32)
    text = np.asarray([[1, 2, 5], [1, 2, 3]], np.int32)
    want = model.given(model.encode(model.heard[[1, 0]])).score(text)
    for _ in range(2):
        np.testing.assert_allclose(model.score(text), want, atol=1e-5)
        model.default_source(1)


def test_translations(made):
    found = row(made, "texts")
    assert len(found["texts"]) == 2
    assert found["sentences_per_s"] > 0
    assert 0 <= found["chrf"] <= 100
    assert "version" in found["bleu_signature"]
    assert "no usable translation" in found["verdict"]
    together = row(made, "together")
    assert (together["batch"], together["texts"]) == (2, found["texts"])
    spoken = row(made, "translated")
    assert spoken["task"] == "translate"
    assert spoken["texts"][0]["reference"] == "w1 w2"


@pytest.mark.parametrize(("name", "words"), {
    "no audio": "--audio must name", "broken": "no WAV file", "missing": "WAV files",
    "no clips": "WAV files", "language": "no language of this code", "threshold": "probability",
    "chunk": "--chunk_s must be more", "batch": "--batch must be", "workers": "is for workers",
    "workers of a dialogue": "is for workers", "dialogue on workers": "by one process",
    "transcripts": "--transcripts must be",
    "no whisper": "needs a Whisper", "scenario": "scenario", "both": "either --audio",
    "no pairs": "holds no pairs", "no file": "readable UTF-8", "speech model": "give it --audio",
}.items())
def test_mistakes_are_told(made, name, words):
    code, _, err = made[0][name]
    assert code == 2, err
    assert words in err
    assert "Traceback" not in err


def test_transcripts(tmp_path):
    (tmp_path / "a").write_text("<s> he was </s> (one-1)\n\ntwo.wav\tshe  \n")
    assert clips.transcripts(str(tmp_path / "a")) == {"one-1": "he was", "two": "she"}
    (tmp_path / "a").write_text("neither form\n")
    with pytest.raises(TfspeedError, match="line=1"):
        clips.transcripts(str(tmp_path / "a"))


def test_files_of_one_name_in_two_folders(tmp_path):
    (tmp_path / "said").write_text("a/one.wav\tfirst\n/x/b/one\tsecond\ntwo\tthird\n")
    said = clips.transcripts(str(tmp_path / "said"))
    found = [clips.transcript(said, tmp_path / name) for name in (
        "a/one.wav", "b/one.wav", "c/one.wav", "c/two.WAV", "c/three.wav")]
    assert found == ["first", "second", "first", "third", None]


def test_text_that_grows_on_a_terminal(monkeypatch, capsys):
    def partial(revision, text, open_text, end=False):
        return Partial(revision, text, open_text, False, end, 1.0, 0.1)

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "10")
    list(speech_stream.shown([partial(0, "one", "one"),
                              partial(1, "one two three", "one two three"),
                              partial(2, "one two three four", "four"),
                              partial(3, "one two three four five", "four five", True)]))
    assert capsys.readouterr().out == (
        "\r\033[Jone\r\033[Jone two three\033[1A\r\033[Jone two three\nfour"
        "\r\033[Jfour five\n")


def test_catalogues(tmp_path):
    pytest.importorskip("polib")
    (tmp_path / "a.po").write_text(
        'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n'
        'msgid "Enter a valid date."\nmsgstr "Bitte ein gültiges Datum eingeben."\n\n'
        'msgid "Not more than %d files"\nmsgstr "Nicht mehr als %d Dateien"\n\n'
        'msgid "Save"\nmsgstr "Sichern"\n\nmsgid "This is not yet done"\nmsgstr ""\n', "utf-8")
    assert pairs.read(str(tmp_path / "a.po"), 0) == [
        ("Enter a valid date.", "Bitte ein gültiges Datum eingeben.")]
    many = tmp_path / "a.tsv"
    many.write_text("".join(f"{i}\t{-i}\n" for i in range(10)))
    assert [a for a, _ in pairs.read(str(many), 4)] == ["0", "3", "6", "9"]


def test_scores_are_sacrebleus():
    pytest.importorskip("sacrebleu")
    same = pairs.scores(["the cat sat on the mat"], ["the cat sat on the mat"])
    assert same["chrf"] == pytest.approx(100)
    assert same["bleu"] == pytest.approx(100)
    assert pairs.scores(["nothing alike"], ["völlig anders"])["chrf"] < 20


PEER = """
import json, sys, numpy as np
print(json.dumps({"load_s": 1.0, "type": "int8", "version": "fake"}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    assert np.load(request["frames"]).shape == (1, 8, 120)
    print(json.dumps({"encode_s": 60.0, "decode_s": 40.0, "tokens": [56, 1, 2]}),
          flush=True)
"""


def test_a_peer_reads_the_same_windows(tmp_path, monkeypatch):
    save_ctranslate2(tiny("whisper", source_length=60), tmp_path / "tiny")
    written(tmp_path / "a.wav", 0.3 * np.random.default_rng(0).normal(size=16000 * 2))
    (tmp_path / "worker.py").write_text(PEER)
    monkeypatch.setitem(peers.SPEECH_PEERS, "fake", peers.Peer(
        (), str(tmp_path / "worker.py"), "It is a fake."))
    monkeypatch.setattr(peers, "install", lambda *_: sys.executable)
    made = Transcriber(create("litert:int8", load(tmp_path / "tiny")), Options(new_tokens=4))
    flags = types.SimpleNamespace(repetitions=2, stream=False, threads=1)
    with speech_peers.running(["fake"], made, flags, Progress()) as running:
        row = speech_job.measure(made, [tmp_path / "a.wav"], {"a": "w1 w2 w1 w2"}, flags,
                                 Progress(), running)
    peer = row["peers"][0]
    assert peer["rtf"]["samples"] == [100.0, 100.0]  # two windows of 100 s for two seconds
    assert (peer["wer"], peer["clips"][0]["text"]) == (0.0, "w1 w2 w1 w2")
    assert peer["speedup"]["ratio"] > 1
    speech_job.show(row | {"model": "m", "strategy": "s", "engine": "e"}, Progress())


def test_windows_that_are_not_silent_are_counted(tmp_path):
    paths = [written(tmp_path / "quiet.wav", np.zeros(16000)), written(tmp_path / "none.wav", []),
             written(tmp_path / "long.wav", 0.3 * np.ones(40000))]
    made = types.SimpleNamespace(window_samples=19200)
    assert [speech_job._heard(made, paths, most) for most in (1, 9)] == [1, 3]
    assert speech_job._heard(made, paths[:2], 9) == 0


@pytest.mark.parametrize(("changes", "words"), [
    ({"peers": "whisperkit"}, "must be among"), ({"audio": "stdin"}, "not standard input"),
    ({"language": "auto"}, "told the language")])
def test_peers_that_cannot_be_asked(changes, words):
    flags = types.SimpleNamespace(**{"peers": "ctranslate2", "audio": "a.wav", "language": "en"}
                                  | changes)
    with pytest.raises(TfspeedError, match=words):
        speech_peers.asked(flags)


def test_standard_input_is_heard_while_it_comes(tmp_path, monkeypatch, capsys):
    save_ctranslate2(tiny("whisper", source_length=60), tmp_path / "tiny")
    path = written(tmp_path / "a.wav", 0.3 * np.random.default_rng(0).normal(size=16000 * 2))
    made = Transcriber(create("litert", load(tmp_path / "tiny")),
                       Options(no_speech_threshold=1.0, new_tokens=4))

    def said(raw):
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(raw)))
        return speech_stream.listen(made, 1.0)

    row = said(path.read_bytes())
    lines = capsys.readouterr().out.splitlines()
    assert [line[:2] for line in lines] == ["~0", "=1", "~1", "=2"]
    settled = [line.partition("] ")[2] for line in lines if line.startswith("=")]
    assert " ".join(settled).strip() == row["text"]
    assert row["audio_s"] == pytest.approx(2)
    assert row["partials"] == 3
    for raw, words in ((b"", "no WAV"), (b"not a sound", "no WAV"),
                       (written(path, []).read_bytes(), "Nothing was heard")):
        with pytest.raises(TfspeedError, match=words):
            said(raw)
