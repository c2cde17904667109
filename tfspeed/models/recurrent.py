"""RNN, LSTM and GRU language models: what the field decoded with before attention.

The state is one vector (two for LSTM) a layer and row, whatever the context: a decode step costs
the same at token 10 and at token 10,000. Training is serial in the length, which is what the
Transformer mended. Sources: Elman 1990; Hochreiter and Schmidhuber 1997; arXiv:1406.1078.
"""

import keras
import tensorflow as tf
from keras import ops

from tfspeed.errors import TfspeedError
from tfspeed.models.conversion import ConvertibleModel
from tfspeed.models.language_model import LanguageModel, variable_bytes

CELLS = {"rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}
GATES = {"rnn": 1, "lstm": 4, "gru": 3}  # matrices side by side in a cell


def layer_dims(sizes: dict) -> list[int]:
    """The width of each layer of a `Recurrent` of these sizes."""
    return sizes.get("layer_dims") or [sizes["hidden_dim"]] * sizes["num_layers"]


@keras.saving.register_keras_serializable("tfspeed")
class Recurrent(ConvertibleModel, keras.Model):
    """Embedding, recurrent layers, output: tokens `[batch, length]` → logits.

    Args:
        embedding_dim: 0: as wide as the first layer.
        layer_dims: of layers that are not all `hidden_dim` wide; () for those.
        tied_embeddings: whether the table is the output layer too, else that is a Dense with bias.
    """

    def __init__(self, vocabulary_size: int, hidden_dim: int, num_layers: int = 1,
                 cell: str = "lstm", context_length: int = 4096, embedding_dim: int = 0,
                 layer_dims: tuple[int, ...] = (), tied_embeddings: bool = True, **kwargs):
        super().__init__(**kwargs)
        if cell not in CELLS:
            raise TfspeedError(f"cell must be one of {', '.join(CELLS)}.", cell=cell)
        self.sizes = {"vocabulary_size": vocabulary_size, "hidden_dim": hidden_dim,
                      "num_layers": num_layers, "cell": cell, "context_length": context_length,
                      "embedding_dim": embedding_dim, "layer_dims": list(layer_dims),
                      "tied_embeddings": tied_embeddings}
        dims = self.layer_dims
        width = embedding_dim or dims[0]
        if len(dims) != num_layers or (tied_embeddings and width != dims[-1]):
            raise TfspeedError("A recurrent model has a width for each layer, and tied embeddings "
                               "are as wide as the last.", **self.sizes)
        self.embedding = keras.layers.Embedding(vocabulary_size, width, dtype=self.dtype_policy,
                                                name="embedding")
        self.embedding.build(None)
        # use_cudnn=False: cuDNN's kernels know neither left padding nor XLA.
        extra = {"dtype": self.dtype_policy} | ({} if cell == "rnn" else {"use_cudnn": False})
        self.layers_ = [
            CELLS[cell](dim, return_sequences=True, return_state=True, name=f"{cell}_{i}", **extra)
            for i, dim in enumerate(dims)]
        for layer, inputs in zip(self.layers_, [width, *dims], strict=False):
            layer.build((None, None, inputs))
        self.head = None
        if not tied_embeddings:
            self.head = keras.layers.Dense(vocabulary_size, dtype=self.dtype_policy, name="head")
            self.head.build((None, None, dims[-1]))
        self.built = True

    @property
    def layer_dims(self) -> list[int]:
        return layer_dims(self.sizes)

    def forward(self, tokens, mask, states):
        """Returns hidden states `[batch, length, hidden]` and the new states; a token whose
        mask is False leaves the state as it was."""
        x, new_states = self.embedding(tokens), []
        for layer, state in zip(self.layers_, states, strict=True):
            x, *state = layer(x, initial_state=list(state), mask=mask)
            new_states.append(tuple(state))
        return x, new_states

    def initial_state(self, batch: int):
        count = 2 if self.sizes["cell"] == "lstm" else 1
        return [tuple(ops.zeros((batch, dim), self.compute_dtype) for _ in range(count))
                for dim in self.layer_dims]

    def logits(self, hidden):
        if self.head is not None:
            return ops.cast(self.head(hidden), "float32")
        table = ops.cast(self.embedding.embeddings, hidden.dtype)
        return ops.cast(ops.matmul(hidden, ops.transpose(table)), "float32")

    def call(self, tokens):
        hidden, _ = self.forward(tokens, None, self.initial_state(ops.shape(tokens)[0]))
        return self.logits(hidden)

    def get_config(self):
        return {**super().get_config(), **self.sizes}


class RecurrentModel(LanguageModel):
    """A `Recurrent` as a `LanguageModel`: the state is the recurrent state."""

    def __init__(self, name: str, keras_model: Recurrent, tokenizer=None, source=None, notes=()):
        super().__init__(name, keras_model, keras_model.sizes["vocabulary_size"],
                         keras_model.sizes["context_length"], tokenizer, source, notes)

    def initial_state(self, batch, capacity):
        del capacity  # the state does not grow with the text
        return self.keras_model.initial_state(batch)

    def prefill(self, tokens, lengths, state):
        length = tokens.shape[1]
        mask = tf.range(length)[None, :] >= (length - lengths)[:, None]
        hidden, state = self.keras_model.forward(tokens, mask, state)
        return self.keras_model.logits(hidden[:, -1]), state

    def score(self, tokens):
        return self.keras_model(tokens)

    def step_bytes(self, batch, context):
        state = sum(int(tf.size(t)) * t.dtype.size
                    for layer in self.initial_state(batch, context) for t in layer)
        return sum(variable_bytes(v) for v in self.keras_model.weights) + state
