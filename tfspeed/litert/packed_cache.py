"""A model's weights packed for LiteRT."""

from tfspeed.errors import TfspeedError
from tfspeed.litert.formats import Formats
from tfspeed.litert.pack import PackedDecoder, Packer
from tfspeed.litert.smooth import calibration_tokens
from tfspeed.models.decoder import Decoder
from tfspeed.models.language_model import LanguageModel


def packed(model: LanguageModel, formats: Formats) -> PackedDecoder:
    """The weights of a model over a `Decoder`, calibrated where the formats quantize."""
    decoder = model.keras_model
    if not isinstance(decoder, Decoder):
        raise TfspeedError("The litert engine runs tfspeed's decoders and recurrent models only.",
                           model=model.name, type=type(decoder).__name__,
                           hint="Use --engine=xla.")
    calibration = None
    if formats.quantized:
        calibration = calibration_tokens(model.tokenizer, model.vocabulary_size,
                                         model.context_length)
    return Packer(decoder, formats, calibration).pack()
