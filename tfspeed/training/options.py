"""What a training run is told."""

import dataclasses
import math

from tfspeed.errors import TfspeedError

TRAINABLE = ("full", "lora")
# What BUILD.md's figures were made with; other rates were not compared on a real model.
LEARNING_RATES = {"full": 1e-4, "lora": 1e-3}


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Bad values raise TfspeedError.

    Attributes:
        tokens: the budget; windows are read again, in another order, where the text has fewer.
        learning_rate: the peak; 0: the default of `trainable`.
        trainable: `full`, all float32 weights; `lora`, adapters on every Dense and EinsumDense.
        rank: of the adapters.
        batch: windows that make one step of the optimizer, over all replicas.
        temperature: softens both distributions (arXiv:1503.02531).
        cross_entropy: share of the loss on the text's own next tokens, 0 to 1.
        warmup: share of the steps in which the rate rises from zero; then it falls as a cosine.
        clip: largest global norm of the gradients.
        seed: of the windows' order and the adapters' first values.
        checkpoint: folder that a run goes on from; "": none.
        checkpoint_seconds: how often it is written; 0: after every step.
    """

    tokens: int = 40_000
    learning_rate: float = 0.0
    trainable: str = "full"
    rank: int = 16
    batch: int = 4
    temperature: float = 1.0
    cross_entropy: float = 0.0
    warmup: float = 0.1
    clip: float = 1.0
    seed: int = 0
    checkpoint: str = ""
    checkpoint_seconds: float = 120.0

    def __post_init__(self):
        for name in ("tokens", "batch", "rank"):
            if getattr(self, name) < 1:
                raise TfspeedError(f"{name} must be at least 1.", **{name: getattr(self, name)})
        if self.trainable not in TRAINABLE:
            raise TfspeedError(f"trainable must be one of {', '.join(TRAINABLE)}.",
                               trainable=self.trainable)
        for name in ("temperature", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise TfspeedError(f"{name} must be positive.", **{name: getattr(self, name)})
        if not 0 <= self.learning_rate < math.inf:
            raise TfspeedError("learning_rate must be positive, or 0 for the default.",
                               learning_rate=self.learning_rate)
        for name in ("cross_entropy", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise TfspeedError(f"{name} is a share, from 0 to 1.",
                                   **{name: getattr(self, name)})

    @property
    def peak(self) -> float:
        return self.learning_rate or LEARNING_RATES[self.trainable]

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0, 1, …, `steps` - 1."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return self.peak * (step + 1) / rising
        return self.peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
