"""WAV files as blocks of 16 kHz mono samples, however long they are."""

import math
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from tfspeed.audio import riff
from tfspeed.audio.log_mel import RATE
from tfspeed.errors import TfspeedError

BLOCK_S = 1.0  # of a block
_RATES = (1_000, 768_000)
_CHANNELS = 64
_CROSSINGS = 16  # of the sinc on either side: under -80 dB of what lies beyond the band


class Wav:
    """A PCM file of 8, 16, 24 or 32 bits, any rate and channels; a context manager.

    Args:
        source: a path, or an open binary file, which may be a pipe.

    Raises:
        TfspeedError: it is no such file, or damaged.
    """

    def __init__(self, source: str | BinaryIO):
        self.name = str(getattr(source, "name", source))
        self._own = not hasattr(source, "read")
        self._file = None
        try:
            # Closed by `close`, or by whoever made what was given.
            self._file = open(source, "rb") if self._own else source  # noqa: SIM115
            header = riff.header(self._file)
        except (OSError, EOFError, ValueError) as error:
            self.close()
            cause = getattr(error, "strerror", None) or str(error)
            raise TfspeedError("This is no WAV file that can be read.", path=self.name,
                               cause=cause, hint="PCM of 8, 16, 24 or 32 bits is: `ffmpeg -i IN "
                                                 "-ar 16000 -ac 1 -c:a pcm_s16le OUT.wav`.",
                               ) from error
        self.rate, self.channels, self.width = header.rate, header.channels, header.width
        self._left = math.inf if header.size is None else header.size
        self._begun = header.begun
        if not (_RATES[0] <= self.rate <= _RATES[1] and 1 <= self.channels <= _CHANNELS
                and 1 <= self.width <= 4):
            self.close()
            raise TfspeedError("A WAV file has a rate of 1 to 768 kHz, up to 64 channels and up to "
                               "32 bits.", path=self.name, rate=self.rate, channels=self.channels,
                               bits=8 * self.width)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        if self._own and self._file is not None:
            self._file.close()

    def blocks(self) -> Iterator[np.ndarray]:
        """float32 samples in [-1, 1] at 16 kHz, channels mixed, about a second at a time.

        A file that ends in the middle gives what is there.
        """
        resampler = None if self.rate == RATE else Resampler(self.rate)
        frame = self.channels * self.width
        block = max(1, int(BLOCK_S * self.rate)) * frame
        while True:
            try:
                raw = self._file.read(min(block - len(self._begun), self._left))
            except OSError as error:
                raise TfspeedError("A WAV file could not be read to its end.", path=self.name,
                                   cause=str(error)) from error
            self._left -= len(raw)
            raw, self._begun = self._begun + raw, b""
            raw = raw[:len(raw) // frame * frame]
            if not raw:
                break
            mono = decoded(raw, self.width).reshape(-1, self.channels).mean(1, dtype=np.float32)
            yield mono if resampler is None else resampler.push(mono)
        if resampler is not None:
            yield resampler.end()


def decoded(raw: bytes, width: int) -> np.ndarray:
    """float32 in [-1, 1] of little-endian PCM; eight bits are unsigned."""
    if width == 1:
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        return wide.reshape(-1).view("<i4").astype(np.float32) / 2**31
    return np.frombuffer(raw, f"<i{width}").astype(np.float32) / 2**(8 * width - 1)


class Resampler:
    """From any rate to 16 kHz, block by block: a windowed sinc, one table of taps for each of the
    places that an output can have between inputs."""

    def __init__(self, rate: int):
        common = math.gcd(rate, RATE)
        self._up, self._down = RATE // common, rate // common
        cutoff = min(1.0, RATE / rate) * 0.95
        self._half = math.ceil(_CROSSINGS / cutoff)
        places = np.arange(1 - self._half, self._half + 1)
        offsets = places[None] - np.arange(self._up)[:, None] / self._up
        window = np.where(np.abs(offsets) < self._half,
                          np.i0(9 * np.sqrt(np.maximum(0, 1 - (offsets / self._half) ** 2))), 0)
        taps = np.sinc(offsets * cutoff) * window
        self._taps = (taps / taps.sum(1, keepdims=True)).astype(np.float32)
        self._waiting = np.zeros(self._half - 1, np.float32)  # silence before the first sample
        self._begin = 1 - self._half  # index of the first that waits
        self._read = self._made = 0

    def push(self, samples: np.ndarray) -> np.ndarray:
        """The outputs that no later sample changes."""
        self._waiting = np.concatenate([self._waiting, samples])
        self._read += len(samples)
        return self._outputs((self._read - self._half) * self._up // self._down)

    def end(self) -> np.ndarray:
        """The rest, as many in all as the sound is long."""
        total = self._read * self._up // self._down
        self._waiting = np.concatenate([self._waiting, np.zeros(2 * self._half, np.float32)])
        return self._outputs(total)

    def _outputs(self, until: int) -> np.ndarray:
        numbers = np.arange(self._made, max(self._made, until))
        if not len(numbers):
            return np.zeros(0, np.float32)
        at, place = np.divmod(numbers * self._down, self._up)
        first = at + 1 - self._half - self._begin
        rows = np.lib.stride_tricks.sliding_window_view(self._waiting, 2 * self._half)[first]
        made = np.einsum("nt,nt->n", rows, self._taps[place])
        self._made = int(numbers[-1]) + 1
        drop = max(0, self._made * self._down // self._up + 1 - self._half - self._begin)
        self._waiting, self._begin = self._waiting[drop:], self._begin + drop
        return made.astype(np.float32)
