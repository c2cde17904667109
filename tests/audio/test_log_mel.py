"""Log-mel frames against the published description, written down a second time in numpy."""

import numpy as np
import pytest

from tfspeed.audio.log_mel import filters, hertz_of, log_mel, mel_of


def reference(samples, frames, mels=80):
    """Straight from the description, in float64: one Fourier sum a frame."""
    sound = np.zeros(frames * 160)
    sound[:len(samples)] = samples
    sound = np.pad(sound, 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    rows = np.stack([sound[i * 160:i * 160 + 400] * window for i in range(frames)])
    angles = -2j * np.pi * np.outer(np.arange(400), np.arange(201)) / 400
    power = np.abs(rows @ np.exp(angles)) ** 2

    def mel(f):
        return 3 * f / 200 if f < 1000 else 15 + 27 * np.log(f / 1000) / np.log(6.4)

    def hertz(m):
        return 200 * m / 3 if m < 15 else 1000 * 6.4 ** ((m - 15) / 27)

    edges = [hertz(m) for m in np.linspace(mel(0), mel(8000), mels + 2)]
    bank = np.zeros((201, mels))
    for band in range(mels):
        low, middle, high = edges[band:band + 3]
        for k in range(201):
            f = 40.0 * k
            if low < f < high:
                height = (f - low) / (middle - low) if f <= middle else (high - f) / (high - middle)
                bank[k, band] = height * 2 / (high - low)
    log = np.log10(np.maximum(power @ bank, 1e-10))
    return (np.maximum(log, log.max() - 8) + 4) / 4


@pytest.mark.parametrize("mels", [80, 128])
def test_equals_the_description(mels):
    rng = np.random.default_rng(0)
    time = np.arange(16000 * 2) / 16000
    chirp = 0.3 * np.sin(2 * np.pi * (200 + 1500 * time) * time) + 0.01 * rng.normal(size=len(time))
    quiet = 1e-3 * rng.normal(size=1234)
    made = log_mel([chirp.astype(np.float32), quiet.astype(np.float32)], 300, mels).numpy()
    assert made.shape == (2, 300, mels)
    for row, samples in zip(made, (chirp, quiet), strict=True):
        np.testing.assert_allclose(row, reference(samples.astype(np.float32), 300, mels), atol=1e-4)


def test_rows_do_not_depend_on_each_other():
    rng = np.random.default_rng(1)
    loud, quiet = rng.normal(size=4000), 1e-4 * rng.normal(size=4000)
    both = log_mel([loud, quiet], 50)
    np.testing.assert_allclose(both[1:], log_mel([quiet], 50), atol=1e-6)


def test_silence_and_samples_beyond_the_window():
    np.testing.assert_array_equal(log_mel([[]], 20), np.full((1, 20, 80), -1.5, np.float32))
    long = np.random.default_rng(2).normal(size=20 * 160 + 999)
    np.testing.assert_array_equal(log_mel([long], 20), log_mel([long[:20 * 160]], 20))


def test_the_mel_scale_goes_both_ways():
    hertz = np.array([0, 100, 999, 1000, 1001, 4000, 8000.0])
    np.testing.assert_allclose(hertz_of(mel_of(hertz)), hertz, atol=1e-9)
    assert mel_of(1000) == pytest.approx(15)
    assert (filters(80).sum(0) > 0).all()
