"""Tiny models with a tokenizer, exported once a format for all tests that only read them."""

import pytest
import tokenizers

from tests.conftest import tiny_decoder, tiny_recurrent, tiny_uncached
from tfspeed.export import job
from tfspeed.measure.progress import Progress
from tfspeed.models.tokenizer import Tokenizer

WORDS = ["<unk>", "<end>", *(f"w{i}" for i in range(62))]
# Two windows of it, each of the 96 tokens that a tiny model can hold.
TEXT = " ".join(f"w{(i * i + 3 * i) % 62}" for i in range(200))
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
MODELS = {
    "decoder": tiny_decoder,
    "learned": lambda: tiny_decoder(positions="learned", norm="layer", gated_mlp=False,
                                    activation="gelu_tanh", qkv_bias=True),
    "sliding": lambda: tiny_decoder(sliding_window=5, sliding_layers=(True, False)),
    "lstm": lambda: tiny_recurrent("lstm"),
    "gru": lambda: tiny_recurrent("gru"),
    "uncached": tiny_uncached,
}


def with_tokenizer(model):
    """The model, able to read the words of `TEXT`."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(
        {word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.tokenizer = Tokenizer(backend, eos_ids=[1], chat_template=TEMPLATE)
    return model


def export(model, form, out, weights="float32", context=None, **more):
    """Exports a model; returns the artifact's path."""
    return job.export(model, model, form, weights, context, out, TEXT, Progress(), **more)


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory):
    """An artifact of each format, not to be changed."""
    folder = tmp_path_factory.mktemp("artifacts")
    return {form: export(with_tokenizer(tiny_decoder()), form, folder, weights)
            for form, weights in (("tflite", "int8"), ("litertlm", "int8"),
                                  ("saved_model", "float32"))}
