"""What a model's memory depends on beside its shape: its files, its text, what is kept of it."""

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path

from tfspeed.costs.cases import PACKED
from tfspeed.costs.memory import CALIBRATION_TOKENS
from tfspeed.litert.formats import Formats
from tfspeed.litert.packed_cache import kept
from tfspeed.litert.smooth import calibration_tokens
from tfspeed.models.decoder import Decoder


@dataclasses.dataclass(frozen=True)
class Origin:
    """Attributes:
        tokens: of the calibration text that integers are rounded with.
        file: bytes that are mapped while the model is loaded.
        kept: engines whose packed weights are on the disk.
    """

    tokens: int = CALIBRATION_TOKENS
    file: float = 0.0
    kept: frozenset[str] = frozenset()


def of(model, engines: Iterable[str] = ()) -> Origin:
    """Of a `LanguageModel`; `engines`: names, of which is said whether its weights are kept."""
    tokens = calibration_tokens(model.tokenizer, model.vocabulary_size, model.context_length).size
    @functools.cache  # to know, all weights are looked through
    def here(formats: Formats) -> bool:
        return kept(model, formats)

    mine = {name for name in engines if name.partition(":")[0] in PACKED
            and isinstance(model.keras_model, Decoder) and here(Formats.of_engine(name))}
    return Origin(tokens, _mapped(model.source), frozenset(mine))


def _mapped(source: str | None) -> int:
    """Bytes of a GGUF file, or of a folder's safetensors; other formats are read."""
    path = Path(source or "")
    files = [path] if path.suffix == ".gguf" else path.glob("*.safetensors") if source else []
    return sum(file.stat().st_size for file in files if file.is_file())
