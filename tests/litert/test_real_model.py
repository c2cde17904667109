"""SmolLM2 through LiteRT beside the float32 reference: twenty prompts of 32 tokens, 64 new ones."""

import numpy as np
import pytest

from tests.engines.test_engines import generate
from tfspeed.engines import create
from tfspeed.measure.experiment import EVAL_TEXT
from tfspeed.models.load import load


@pytest.mark.slow
@pytest.mark.real_model
def test_float32_gives_the_references_tokens():
    model = load("smollm2-135m")
    ids = model.tokenizer.encode(EVAL_TEXT.read_text(encoding="utf-8"))
    prompts = [ids[at * len(ids) // 20:][:32] for at in range(20)]
    expected = generate(create("xla", model), prompts, 64)
    engine = create("litert", model)
    alone = np.concatenate([generate(engine, [prompt], 64) for prompt in prompts])
    np.testing.assert_array_equal(alone, expected)
    np.testing.assert_array_equal(generate(engine, prompts, 64), expected)
