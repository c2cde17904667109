"""KerasHub's encoder–decoders, random and tiny: an `EncoderDecoder` must give their numbers."""

import numpy as np
import pytest

from tfspeed.models.load import load

keras_hub = pytest.importorskip("keras_hub")
SIZES = dict(vocabulary_size=64, num_layers=2, num_heads=4, hidden_dim=16, intermediate_dim=32,
             dropout=0.0)
CASES = {
    "whisper": lambda m: m.WhisperBackbone(**SIZES, num_mels=8, max_encoder_sequence_length=40,
                                           max_decoder_sequence_length=32),
    "bart": lambda m: m.BartBackbone(**SIZES, max_sequence_length=20),
    "t5": lambda m: m.T5Backbone(**SIZES, key_value_dim=4, use_gated_activation=False),
    "t5_gated": lambda m: m.T5Backbone(**SIZES, key_value_dim=4, activation="gelu"),
}


@pytest.mark.parametrize("case", ["whisper", *(pytest.param(c, marks=pytest.mark.slow) for c in
                                               ("bart", "t5", "t5_gated"))])
def test_it_gives_keras_hubs_numbers(case):
    backbone, rng = CASES[case](keras_hub.models), np.random.default_rng(0)
    for variable in backbone.weights:
        variable.assign(rng.normal(0, 0.3, variable.shape))
    tokens = rng.integers(0, 64, (2, 7))
    inputs = {"decoder_token_ids": tokens, "decoder_padding_mask": np.ones((2, 7), "int32")}
    if case == "whisper":
        source = rng.normal(size=(2, 40, 8)).astype("float32")
        inputs["encoder_features"] = source
    else:
        ids = rng.integers(0, 64, (2, 9))
        source = [ids[0].tolist(), ids[1][:6].tolist()]
        inputs |= {"encoder_token_ids": ids,
                   "encoder_padding_mask": np.arange(9) < np.array([[9], [6]])}
    theirs = np.asarray(backbone(inputs)["decoder_sequence_output"])
    model = load(backbone)
    table = np.asarray(backbone.token_embedding.embeddings)
    ours = model.given(model.encode(model.checked_source(source))).score(tokens.astype("int32"))
    np.testing.assert_allclose(ours, theirs @ table.T * model.config.logit_scale, rtol=1e-4,
                               atol=1e-4)
    assert model.parameters >= sum(int(np.prod(v.shape)) for v in backbone.weights)
