"""RNN, LSTM, GRU and Transformer language models over bytes, with equally many weights."""

import math

import keras

from tfspeed.costs import shapes
from tfspeed.errors import TfspeedError
from tfspeed.models.config import DecoderConfig
from tfspeed.models.decoder import Decoder
from tfspeed.models.decoder_model import DecoderModel
from tfspeed.models.language_model import LanguageModel
from tfspeed.models.recurrent import GATES, Recurrent, RecurrentModel

KINDS = ("rnn", "lstm", "gru", "transformer")
VOCABULARY = 256  # bytes: no tokenizer, and nearly all weights are in the layers
TOLERANCE = 0.02
# The best of two to four tried with a million weights on 150,000 bytes of the project's own text.
LEARNING_RATES = {"rnn": 2e-3, "lstm": 6e-3, "gru": 6e-3, "transformer": 6e-3}
# Keras's first table is within 0.05, which a decoder's norms make up for and a recurrent layer does
# not: of 150,000 bytes it learned their frequencies alone (LSTM: perplexity 19.8; with 4 times the
# table 12.0, with 16 times 8.6).
_TABLE_SCALE = 16
_HEAD_DIM = 32


def recurrent_parameters(cell: str, hidden: int, layers: int) -> int:
    """Weights of a `Recurrent` over bytes."""
    return shapes.recurrent({"cell": cell, "hidden_dim": hidden, "num_layers": layers,
                             "vocabulary_size": VOCABULARY, "context_length": 0}).parameters


def hidden_dim(cell: str, parameters: int, layers: int) -> int:
    """The width whose count of weights is nearest to `parameters`."""
    gates = GATES[cell]
    a, b = 2 * layers * gates, VOCABULARY + layers * gates
    guess = int((math.sqrt(b * b + 4 * a * parameters) - b) / (2 * a))
    return min(range(max(1, guess - 2), guess + 3),
               key=lambda width: abs(recurrent_parameters(cell, width, layers) - parameters))


def decoder_config(parameters: int, layers: int, context: int) -> DecoderConfig:
    """A decoder of about that many weights: attention and MLP in the proportion of 1 to 2 (the
    usual one), the MLP as wide as makes up the rest. Positions are rotations: no weights."""
    heads = max(1, round(math.sqrt(parameters / (12 * layers)) / _HEAD_DIM))

    def config(mlp_dim, heads):
        return DecoderConfig(
            vocabulary_size=VOCABULARY, num_layers=layers, hidden_dim=heads * _HEAD_DIM,
            num_heads=heads, num_kv_heads=heads, head_dim=_HEAD_DIM, mlp_dim=mlp_dim,
            context_length=context)

    while heads > 1 and config(1, heads).parameter_count > parameters:  # of few layers
        heads -= 1
    narrowest = config(1, heads).parameter_count
    a_column = config(2, heads).parameter_count - narrowest
    return config(max(1, 1 + round((parameters - narrowest) / a_column)), heads)


def build(kind: str, parameters: int, layers: int, context: int, seed: int = 0) -> LanguageModel:
    """One of `KINDS`, untrained, the same each time.

    Args:
        parameters: count of weights, met within `TOLERANCE`.
        context: tokens that a text may have.

    Raises:
        TfspeedError: no width comes near enough.
    """
    keras.utils.set_random_seed(seed)
    if kind == "transformer":
        model = DecoderModel(kind, Decoder(decoder_config(parameters, layers, context)))
    else:
        width = hidden_dim(kind, parameters, layers)
        model = RecurrentModel(kind, Recurrent(VOCABULARY, width, layers, kind, context))
        table = model.keras_model.embedding.embeddings
        table.assign(_TABLE_SCALE * table.value)
    if abs(model.parameters / parameters - 1) > TOLERANCE:
        raise TfspeedError("No model of this kind has about so many weights.", kind=kind,
                           parameters=parameters, nearest=model.parameters, layers=layers,
                           hint="Ask for more --parameters, or fewer --layers.")
    return model


def width(model: LanguageModel) -> int:
    """Its `hidden_dim`."""
    keras_model = model.keras_model
    return (keras_model.sizes["hidden_dim"] if isinstance(keras_model, Recurrent)
            else keras_model.config.hidden_dim)
