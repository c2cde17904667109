"""Whisper's log-mel frames, in TensorFlow.

Samples at 16 kHz, a 400-point Fourier transform under a Hann window every 160 samples, 80 (or 128)
mel bands of Slaney's scale, log10, clipped at 8 below the loudest, scaled.
Sources: arXiv:2212.04356, section 2.2; the mel scale and its area norm: M. Slaney, Auditory Toolbox
(1998), as librosa has them.
"""

import functools

import numpy as np
import tensorflow as tf

RATE, FFT, HOP = 16_000, 400, 160
_LINEAR_HZ, _BREAK_HZ, _STEP = 200 / 3, 1000.0, np.log(6.4) / 27


def mel_of(hertz):
    """Slaney's mel: linear up to 1 kHz, logarithmic beyond."""
    hertz = np.asarray(hertz, np.float64)
    beyond = np.log(np.maximum(hertz, _BREAK_HZ) / _BREAK_HZ) / _STEP
    return np.minimum(hertz, _BREAK_HZ) / _LINEAR_HZ + beyond


def hertz_of(mel):
    mel = np.asarray(mel, np.float64)
    limit = _BREAK_HZ / _LINEAR_HZ
    return np.minimum(mel, limit) * _LINEAR_HZ * np.exp(_STEP * np.maximum(mel - limit, 0))


@functools.cache
def filters(mels: int) -> np.ndarray:
    """Triangles of equal area, float32 `[FFT / 2 + 1, mels]`."""
    edges = hertz_of(np.linspace(0, mel_of(RATE / 2), mels + 2))
    bins = np.linspace(0, RATE / 2, FFT // 2 + 1)[:, None]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return (np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)).astype(np.float32)


@tf.function(reduce_retracing=True)
def _frames(samples, mel_filters):
    # A frame is centred on its time: half of one is mirrored on either side.
    padded = tf.pad(samples, [[0, 0], [FFT // 2, FFT // 2]], "REFLECT")
    window = tf.signal.hann_window(FFT, periodic=True)
    spectrum = tf.signal.rfft(tf.signal.frame(padded, FFT, HOP) * window)[:, :-1]
    power = tf.square(tf.math.real(spectrum)) + tf.square(tf.math.imag(spectrum))
    mel = tf.maximum(tf.matmul(power, mel_filters), 1e-10)
    log = tf.math.log(mel) / tf.math.log(10.0)
    log = tf.maximum(log, tf.reduce_max(log, axis=[1, 2], keepdims=True) - 8)
    return (log + 4) / 4


def log_mel(samples, frames: int, mels: int = 80) -> tf.Tensor:
    """float32 `[batch, frames, mels]` of samples in [-1, 1], a list of rows of up to `frames` · HOP
    each; what is missing is silence."""
    length = frames * HOP
    padded = np.zeros((len(samples), length), np.float32)
    for row, values in zip(padded, samples, strict=True):
        row[:min(len(values), length)] = values[:length]
    return _frames(tf.constant(padded), tf.constant(filters(mels)))
