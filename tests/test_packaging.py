"""What `pip install .` must carry: every package, and every file that is no Python."""

import fnmatch
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_listed():
    found = {".".join(path.parent.relative_to(ROOT).parts)
             for top in ("tfspeed", "strategies") for path in (ROOT / top).rglob("__init__.py")}
    assert found == set(SETUPTOOLS["packages"])


def test_every_data_file_is_listed():
    patterns = SETUPTOOLS["package-data"]["tfspeed"]
    files = [path.relative_to(ROOT / "tfspeed").as_posix()
             for path in (ROOT / "tfspeed").rglob("*")
             if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert files
    for file in files:
        assert any(fnmatch.fnmatch(file, pattern) for pattern in patterns), file
