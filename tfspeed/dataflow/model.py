"""A model whose layers are to be spread over the stages of a pipeline."""

from tfspeed.models.decoder_model import DecoderModel
from tfspeed.models.encoder_decoder_model import EncoderDecoderModel
from tfspeed.models.language_model import LanguageModel, Placement


class Stages(Placement):
    """Whole generations run through a pipeline.

    Args:
        devices: what the stages are called.
        engines: kinds of engines that a stage can run.
        engine: from the engine of one device to the pipeline's.
    """

    exchanges = True

    def __init__(self, devices, engines, engine, member=None):
        self.devices, self.engines = tuple(devices), engines
        self.engine, self._member = engine, member

    def agree(self, facts):
        if self._member is not None:
            self._member.agree(facts)

    @property
    def writes(self):
        return self._member is None or self._member.is_chief


class Staged(LanguageModel):
    """Tells what the whole model is, also once its pipeline has let go of the layers of others."""

    def __init__(self, model: LanguageModel, placement: Stages):
        super().__init__(model.name, model.keras_model, model.tokenizer, model.source, model.notes)
        self.reload, self.placement = model.reload, placement
        self._parameters = model.parameters

    @property
    def parameters(self):
        return self._parameters


class StagedModel(Staged, DecoderModel):
    """Of a `Decoder`."""


class StagedEncoderDecoder(Staged, EncoderDecoderModel):
    """Of an `EncoderDecoder`."""
