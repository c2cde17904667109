"""A text being continued after a source that was encoded."""

from tfspeed.litert.runtime import Buffers, Program
from tfspeed.litert.seq2seq import PREFILLS, decoder_config, given_names
from tfspeed.litert.session import DecoderSession
from tfspeed.models.encoder_decoder_config import EncoderDecoderConfig


class CrossSession(DecoderSession):
    """See `DecoderSession`; `hear` first."""

    prefills = PREFILLS

    def __init__(self, program: Program, config: EncoderDecoderConfig, sizes: list[int]):
        super().__init__(program, decoder_config(config), sizes)
        self._names, self._heard = given_names(config), None

    def hear(self, encoded: Buffers) -> None:
        """Goes on from a source: its keys and values stay where `encode` wrote them.

        Args:
            encoded: of the signature `encode`, which has run.
        """
        self._heard = encoded
        for buffers in self._made.values():
            buffers.share(encoded, self._names)

    def _buffers(self, name):
        new = name not in self._made
        made = super()._buffers(name)
        if new:
            made.share(self._heard, self._names)
        return made
