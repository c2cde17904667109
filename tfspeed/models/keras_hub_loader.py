"""Takes KerasHub models over into a `Decoder`; a family not known runs through its own cache.

KerasHub is imported only to read a preset: a model in memory is known by its class's name.
"""

from tfspeed.errors import TfspeedError
from tfspeed.models import keras_hub_seq2seq
from tfspeed.models.checkpoint import Checkpoint
from tfspeed.models.decoder_model import DecoderModel
from tfspeed.models.keras_hub_families import FAMILIES
from tfspeed.models.language_model import LanguageModel


def checkpoint_from_keras_hub(model, name: str | None = None) -> Checkpoint:
    """Config and tensors of a KerasHub model; its preprocessor is not looked at.

    Args:
        model: a `CausalLM` or its `Backbone`, of a class in `FAMILIES`.
        name: what a report calls it; default the model's.

    Raises:
        TfspeedError: the family, or an option of it, is none that a `Decoder` has.
    """
    backbone = getattr(model, "backbone", model)
    kind = type(backbone).__name__
    if kind not in FAMILIES or not _is_a(model, "CausalLM", "Backbone"):
        raise TfspeedError("This KerasHub model is of no family that tfspeed's Decoder knows.",
                           model=type(model).__name__, backbone=kind,
                           known=sorted(FAMILIES))
    if any(getattr(layer, "quantization_mode", None) for layer in backbone._flatten_layers()):
        raise TfspeedError("A KerasHub model that is quantized cannot be taken apart.", model=kind,
                           hint="Give the model before quantize(); tfspeed has its own.")
    config, tensors = FAMILIES[kind](backbone)
    notes = []
    if getattr(backbone, "vision_encoder", None) is not None:
        notes.append("Its vision encoder is left out: text only.")
    return Checkpoint(config, tensors, name=name or model.name, notes=tuple(notes))


def wrap_keras_hub(model, name: str = "") -> LanguageModel:
    """A KerasHub model in memory as a `LanguageModel`, in its own dtype.

    Raises:
        TfspeedError: it is no text generator, or one that nothing here can run.
    """
    name = name or model.name
    if type(getattr(model, "backbone", model)).__name__ in keras_hub_seq2seq.FAMILIES:
        from tfspeed.models.encoder_decoder_model import EncoderDecoderModel
        backbone = getattr(model, "backbone", model)
        return EncoderDecoderModel.from_checkpoint(
            keras_hub_seq2seq.checkpoint_from_backbone(backbone, name),
            backbone.dtype_policy.name)
    try:
        checkpoint = checkpoint_from_keras_hub(model, name)
    except TfspeedError as error:
        if not _is_a(model, "CausalLM"):
            raise
        from tfspeed.models.keras_hub_cached import KerasHubCachedModel
        known = type(model.backbone).__name__ in FAMILIES
        return KerasHubCachedModel(name, model, reason=str(error) if known else "")
    dtype = getattr(model, "backbone", model).token_embedding.dtype_policy.name
    return DecoderModel.from_checkpoint(checkpoint, dtype)


def load_keras_hub_preset(preset: str, dtype: str = "float32") -> Checkpoint | LanguageModel:
    """Loads a preset of KerasHub: a name of its own, or `kaggle://`, `hf://`, `modelscope://`.

    Returns:
        A checkpoint; or, of a family that the Decoder does not know, the model ready to run.

    Raises:
        TfspeedError: KerasHub is missing, or could not load the preset.
    """
    try:
        import keras_hub
    except ImportError as error:
        raise TfspeedError("A KerasHub preset needs the package keras-hub.", preset=preset,
                           hint="Run `pip install keras-hub`.") from error
    try:
        model = keras_hub.models.CausalLM.from_preset(preset, preprocessor=None, dtype=dtype)
    except Exception as error:  # whatever the network, Kaggle's or Hugging Face's client raises
        cause = (str(error).strip().splitlines() or [""])[0][:300]
        raise TfspeedError("KerasHub could not load this preset.", preset=preset,
                           cause=f"{type(error).__name__}: {cause}",
                           hint="Check its name and the network.") from error
    try:
        checkpoint = checkpoint_from_keras_hub(model, preset)
    except TfspeedError:
        loaded = wrap_keras_hub(model, preset)
        loaded.source = preset
        return loaded
    checkpoint.source = preset
    return checkpoint


def _is_a(model, *names: str) -> bool:
    return any(base.__name__ in names for base in type(model).__mro__)
