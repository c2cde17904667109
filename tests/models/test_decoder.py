"""Parts of the decoder that its loaders' tests do not reach."""

import numpy as np

from tfspeed.models.config import RopeConfig
from tfspeed.models.decoder import rotation


def test_each_row_decides_on_its_own_angles():
    """LongRoPE: a long text in the same batch must not change a short one's."""
    rope = RopeConfig(factors=(1.0, 2.0), long_factors=(3.0, 4.0), original_context=8)
    positions = np.array([[-1, 5, 6], [6, 7, 8]], np.int32)
    both = rotation(positions, rope, 4)
    for i in range(2):
        for found, alone in zip(both, rotation(positions[i:i + 1], rope, 4), strict=True):
            np.testing.assert_allclose(found[i], alone[0], atol=1e-6)
    short = rotation(positions[:1], RopeConfig(factors=(1.0, 2.0), original_context=8), 4)
    np.testing.assert_allclose(both[0][0], short[0][0], atol=1e-6)
