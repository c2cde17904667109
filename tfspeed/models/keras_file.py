"""A model as one `.keras` file that holds its tokenizer as well.

Keras's own file is a zip archive; the tokenizer lies in it under `tfspeed/`, where Keras does not
look. The layers that strategies made are tfspeed's: the file needs `import tfspeed`, and neither
TFMOT nor the strategy that made it.
"""

import tempfile
import zipfile
from pathlib import Path

from tfspeed.models.language_model import LanguageModel
from tfspeed.models.tokenizer import Tokenizer, tokenizer_from_folder

_INSIDE = "tfspeed/"


def save_keras(model: LanguageModel, path: Path) -> None:
    """Writes the Keras model and its tokenizer.

    Args:
        path: ends in `.keras`.
    """
    model.keras_model.save(path)
    if model.tokenizer is None:
        return
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path, "a") as archive:
        model.tokenizer.save(folder)
        for file in sorted(Path(folder).iterdir()):
            archive.write(file, _INSIDE + file.name, zipfile.ZIP_DEFLATED)


def saved_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer in a `.keras` file, None where there is none."""
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        for name in archive.namelist():
            if name.startswith(_INSIDE) and "/" not in name[len(_INSIDE):]:
                Path(folder, name[len(_INSIDE):] or "none").write_bytes(archive.read(name))
        return tokenizer_from_folder(folder)
