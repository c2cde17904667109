"""Makes the stages of a pipeline of what an engine on one device has, and tells what they cost."""

import tensorflow as tf

from tfspeed.dataflow.stage import Stage, StageDecoder
from tfspeed.engines.base import Engine, bucket
from tfspeed.engines.tf_function import TfFunctionEngine


class TfStages:
    """Of a `TfFunctionEngine`.

    Attributes:
        hidden_type: numpy's, of hidden states.
        piece_tokens: that a call reads of prompts, at least. Large pieces keep later stages
            waiting at first; in small ones each token takes longer, here because weights are laid
            out anew in each call.
    """

    piece_tokens = 256

    def __init__(self, inner: Engine):
        self.decoder = inner.model.keras_model
        self.hidden_type = tf.as_dtype(self.decoder.compute_dtype).as_numpy_dtype
        self._jit_compile = inner.jit_compile

    def __call__(self, numbers, first: bool, last: bool, head: bool = False) -> Stage:
        return Stage(StageDecoder(self.decoder, numbers, first, last, head), self._jit_compile)

    def length(self, longest: int) -> int:
        """That prompts are padded to: few lengths, few traces."""
        return bucket(longest)


class FusedStages:
    """Of a `FusedEngine`, which reads a weight once for twelve tokens anyhow."""

    piece_tokens = 64

    def __init__(self, inner: Engine):
        self.decoder, self._inner = inner.model.keras_model, inner
        self.hidden_type = "float32"

    def __call__(self, numbers, first: bool, last: bool, head: bool = False):
        from tfspeed.dataflow.fused_stage import FusedStage
        return FusedStage(self._inner, numbers, first, last, head)

    def length(self, longest: int) -> int:
        """That prompts are padded to: any."""
        return longest


def stages(inner: Engine) -> TfStages | FusedStages:
    return TfStages(inner) if isinstance(inner, TfFunctionEngine) else FusedStages(inner)
