"""Speculation: a cheap guess at the next tokens, verified by the model in a single pass.

Source: Leviathan et al., arXiv:2211.17192; prompt lookup, Saxena 2023 (and arXiv:2304.04487); early
exit, LayerSkip, arXiv:2404.16710.
"""

import dataclasses

from tfspeed.errors import TfspeedError

DRAFTS = ("lookup", "early_exit", "low_bit")
MOST_TOKENS = 23


@dataclasses.dataclass(frozen=True)
class Speculation:
    """How drafts are made. Bad values raise TfspeedError.

    Attributes:
        draft: one of `DRAFTS`.
        tokens: drafted at once, at most.
        exit_layer: layers of a draft by early exit; 0: a quarter of the model's.
        draft_weights: format of the low-bit copy, see `litert.formats.Formats`.
        adaptive: whether it switches itself off where it does not pay.
    """

    draft: str = "lookup"
    tokens: int = 11
    exit_layer: int = 0
    draft_weights: str = "int4"
    adaptive: bool = True

    def __post_init__(self):
        if self.draft not in DRAFTS:
            raise TfspeedError(f"A draft must be one of {', '.join(DRAFTS)}.",
                               speculative_draft=self.draft)
        if not 1 <= self.tokens <= MOST_TOKENS:
            raise TfspeedError(f"Between 1 and {MOST_TOKENS} tokens are drafted at once.",
                               speculative_tokens=self.tokens)
        if self.exit_layer < 0:
            raise TfspeedError("speculative_exit_layer must be a layer of the model, 0 for a "
                               "quarter of them.", speculative_exit_layer=self.exit_layer)
        from tfspeed.litert.formats import Formats
        Formats(self.draft_weights)

    def widths(self, passes: tuple[int, ...]) -> tuple[int, ...]:
        """Those of an engine's `pass_widths` that are used."""
        return tuple(width for width in passes if width <= self.tokens + 1)

    def exit_layers(self, layers: int) -> int:
        """Layers of a draft by early exit, of so many that a model has; 0 where another drafts.

        Raises:
            TfspeedError: it would leave out none.
        """
        if self.exit_layer >= layers:
            raise TfspeedError("A draft by early exit must leave out some layers.",
                               speculative_exit_layer=self.exit_layer, layers=layers)
        return (self.exit_layer or max(1, layers // 4)) if self.draft == "early_exit" else 0
