"""WAV files of all kinds, and what is none."""

import io
import wave

import numpy as np
import pytest

from tfspeed.audio.wav import Resampler, Wav
from tfspeed.errors import TfspeedError


def written(path, samples, rate=16000, width=2):
    """A WAV file of float samples `[frames]` or `[frames, channels]`."""
    samples = np.atleast_2d(np.asarray(samples, np.float64).T).T
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        whole = np.round(samples * (2**(8 * width - 1) - 1)).astype(np.int64)
        if width == 1:
            whole += 128
        raw = whole.astype("<i8").reshape(-1, 1).view(np.uint8)[:, :width]
        file.writeframes(raw.tobytes())
    return path


def tone(rate, seconds=1.3, hertz=440.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def read(path):
    with Wav(path) as file:
        return np.concatenate([np.zeros(0, np.float32), *file.blocks()])


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_widths(tmp_path, width):
    sound = tone(16000)
    made = read(written(tmp_path / "a.wav", sound, width=width))
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, sound, atol=1.5 / 2**(8 * min(width, 2) - 1))


@pytest.mark.parametrize("width", [2, 3, 4])
def test_the_extensible_form_that_ffmpeg_writes(tmp_path, width):
    plain = written(tmp_path / "a.wav", tone(16000), width=width).read_bytes()
    guid = bytes.fromhex("0100000000001000800000aa00389b71")
    fmt = (b"\xfe\xff" + plain[22:36] + b"\x16\0" + plain[34:36] + b"\x04\0\0\0" + guid)
    path = tmp_path / "b.wav"
    noted = b"LIST\x03\0\0\0abc\0"  # an odd chunk is filled up to an even one
    path.write_bytes(plain[:12] + b"fmt \x28\0\0\0" + fmt + noted + plain[36:])
    np.testing.assert_array_equal(read(path), read(tmp_path / "a.wav"))


def test_what_a_header_promises_is_not_believed(tmp_path):
    path = written(tmp_path / "a.wav", tone(16000))
    raw = bytearray(path.read_bytes())
    raw[4:8] = raw[40:44] = b"\xff" * 4  # as ffmpeg writes to a pipe
    path.write_bytes(raw)
    assert len(read(path)) == len(tone(16000))
    raw[36:40] = b"junk"  # four gigabytes to pass over, and no samples
    path.write_bytes(raw)
    with pytest.raises(TfspeedError, match="ends too early"):
        Wav(path)


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_a_stream_whose_length_nobody_knew_is_read_to_its_end(tmp_path, size):
    path = written(tmp_path / "a.wav", tone(16000))
    raw = bytearray(path.read_bytes())
    raw[40:44] = size.to_bytes(4, "little")
    sound = read(path)
    np.testing.assert_array_equal(np.concatenate(list(Wav(io.BytesIO(raw)).blocks())), sound)
    noted = raw[:44] + b"LIST\x04\0\0\0abcd"  # no samples, and a chunk behind them
    assert size or not list(Wav(io.BytesIO(noted)).blocks())


def test_channels_are_mixed(tmp_path):
    left, right = tone(16000), tone(16000, hertz=1000)
    made = read(written(tmp_path / "a.wav", np.stack([left, right], 1)))
    np.testing.assert_allclose(made, (left + right) / 2, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_rates(tmp_path, rate):
    made = read(written(tmp_path / "a.wav", tone(rate), rate))
    wanted = tone(16000)
    assert abs(len(made) - len(wanted)) <= 2
    middle = slice(400, 16000)
    np.testing.assert_allclose(made[middle], wanted[middle], atol=2e-3)


def test_what_16_khz_cannot_hold_is_gone(tmp_path):
    made = read(written(tmp_path / "a.wav", tone(44100, hertz=12000), 44100))
    assert np.abs(made[400:-400]).max() < 1e-3


def test_resampling_does_not_depend_on_the_blocks():
    sound = np.random.default_rng(0).normal(size=9999).astype(np.float32)
    whole, pieces = Resampler(44100), Resampler(44100)
    once = np.concatenate([whole.push(sound), whole.end()])
    many = np.concatenate([*(pieces.push(p) for p in np.split(sound, [1, 2, 50, 3000])),
                           pieces.end()])
    np.testing.assert_allclose(once, many, atol=1e-6)
    assert len(once) == 9999 * 160 // 441


def test_a_long_file_is_never_held(tmp_path):
    path = written(tmp_path / "a.wav", np.zeros(16000 * 90))
    with Wav(path) as file:
        lengths = [len(block) for block in file.blocks()]
    assert (max(lengths), sum(lengths)) == (16000, 16000 * 90)


def test_an_empty_file_gives_nothing(tmp_path):
    assert len(read(written(tmp_path / "a.wav", []))) == 0


def test_a_file_that_ends_in_the_middle_gives_what_is_there(tmp_path):
    path = written(tmp_path / "a.wav", tone(16000))
    path.write_bytes(path.read_bytes()[:10001])
    assert len(read(path)) == (10001 - 44) // 2


def test_a_pipe(tmp_path):
    raw = written(tmp_path / "a.wav", tone(16000)).read_bytes()
    with Wav(io.BytesIO(raw)) as file:
        assert sum(map(len, file.blocks())) == len(tone(16000))


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no sound at all", b"RIFF\x10\0\0\0WAVEfmt "])
def test_no_wav(tmp_path, content):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(TfspeedError, match="no WAV file"):
        Wav(path)


def test_other_codecs_and_missing_files(tmp_path):
    path = written(tmp_path / "a.wav", tone(16000))
    raw = bytearray(path.read_bytes())
    raw[20] = 3  # IEEE floats
    path.write_bytes(raw)
    with pytest.raises(TfspeedError, match="pcm_s16le"):
        Wav(path)
    with pytest.raises(TfspeedError, match="No such file"):
        Wav(tmp_path / "none.wav")
