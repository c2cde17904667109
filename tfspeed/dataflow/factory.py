"""Makes the stages of a pipeline of what an engine on one device has, and tells what they cost."""

import numpy as np
import tensorflow as tf

from tfspeed.dataflow.plan import StagePlan, Work
from tfspeed.dataflow.seq2seq_stage import ListeningStage, StageEncoderDecoder
from tfspeed.dataflow.stage import Stage, StageDecoder
from tfspeed.engines.base import Engine, bucket
from tfspeed.engines.tf_function import TfFunctionEngine


class Stages:
    """Attributes:
        decoder: the whole model.
        piece_tokens: that a call reads of prompts, at least.
    """

    def of(self, plan: StagePlan):
        """The stage of a plan."""
        return self(plan.blocks, plan.first, plan.last, plan.runs_heads)

    def kept(self, plan: StagePlan):
        """What a plan's stage has of the whole model."""
        return StageDecoder(self.decoder, plan.blocks, plan.first, plan.last, plan.runs_heads)

    def source(self, work: Work) -> np.ndarray | None:
        """An empty one, as many rows as are encoded at once; None where none is read."""
        return None


class TfStages(Stages):
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


class ListeningStages(TfStages):
    """Of a `TfFunctionEngine` over an encoder–decoder."""

    def __init__(self, inner: Engine):
        super().__init__(inner)
        self._suppressed = inner.model.suppressed, inner.model.suppressed_first

    def __call__(self, numbers, first, last, head=False, encoder=()):
        """Args:
            encoder: numbers of the encoder's layers.
        """
        return ListeningStage(
            StageEncoderDecoder(self.decoder, numbers, encoder, first, last, head),
            self._jit_compile, *self._suppressed)

    def of(self, plan):
        return self(plan.blocks, plan.first, plan.last, plan.runs_heads, plan.encoder.blocks)

    def kept(self, plan):
        return StageEncoderDecoder(self.decoder, plan.blocks, plan.encoder.blocks, plan.first,
                                   plan.last, plan.runs_heads)

    def source(self, work):
        c = self.decoder.config
        if c.source == "audio":
            return np.zeros((work.source_piece, c.source_frames, c.mels), np.float32)
        return np.zeros((work.source_piece, work.source), np.int32)


class FusedStages(Stages):
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


def stages(inner: Engine) -> Stages:
    if inner.model.reads_source:
        return ListeningStages(inner)
    return TfStages(inner) if isinstance(inner, TfFunctionEngine) else FusedStages(inner)
