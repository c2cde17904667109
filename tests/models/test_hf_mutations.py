"""Damaged Hugging Face folders: they load, or `TfspeedError` says why not. Nothing else."""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.models.hf_folders import CASES, write_folder
from tfspeed.errors import TfspeedError
from tfspeed.models.checkpoint import build_decoder
from tfspeed.models.hf_config import config_from_hf
from tfspeed.models.hf_loader import SINGLE, load_hf_folder

SMALL = {"num_hidden_layers": 1}
CONFIGS = {"llama3": CASES["llama3"] | SMALL, "gemma3_text": CASES["gemma3_old_keys"] | SMALL,
           "phi3": CASES["phi3_long"] | SMALL, "falcon": CASES["falcon_40b"] | SMALL}
VALUES = st.one_of(
    st.sampled_from([0, -1, 1, 2, 3, 7, 10**9, 2**31 - 1, 2**31, 2**63, 10**400, -10**400, 0.5,
                     -0.5, 1e-320, 1e308, float("nan"), float("inf"), True, False, None, "", "x",
                     [], [1], [None] * 2, {}, {"a": 1}, [["x"]], "default", "linear", "longrope"]),
    st.integers(), st.floats(), st.text(max_size=4))
SETTINGS = dict(deadline=None, derandomize=True, database=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(scope="module")
def folders():
    with tempfile.TemporaryDirectory() as root:
        yield {name: write_folder(Path(root) / name, config) for name, config in CONFIGS.items()}


def attempt(folder):
    message = ""
    try:
        build_decoder(load_hf_folder(folder))
    except TfspeedError as error:
        message = str(error)
    assert len(message) < 2000  # a message, not the file


def mutated(data: bytes, draw) -> bytes:
    data = bytearray(data)
    header = min(len(data), 8 + int.from_bytes(data[:8], "little"))
    for _ in range(draw(st.integers(1, 3))):
        # Mostly where it hurts: in the header.
        at = draw(st.one_of(st.integers(0, 15), st.integers(0, header),
                            st.integers(0, len(data)))) % max(len(data), 1)
        kind = draw(st.sampled_from(["flip", "digit", "cut", "insert", "remove"]))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "digit" and data:
            digits = [i for i in range(min(header, len(data))) if chr(data[i]).isdigit()]
            if digits:
                data[digits[at % len(digits)]] = ord(draw(st.sampled_from("0123456789-e")))
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "remove":
            del data[at:at + draw(st.integers(1, 9))]
    return bytes(data)


@settings(max_examples=120, **SETTINGS)
@given(data=st.data())
def test_damaged_weights(data, folders, tmp_path):
    shutil.copytree(folders["llama3"], tmp_path, dirs_exist_ok=True)
    whole = (folders["llama3"] / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(mutated(whole, data.draw))
    attempt(tmp_path)


@settings(max_examples=60, **SETTINGS)
@given(data=st.data())
def test_damaged_config_bytes(data, folders, tmp_path):
    source = folders[data.draw(st.sampled_from(sorted(CONFIGS)))]
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    whole = (source / "config.json").read_bytes()
    (tmp_path / "config.json").write_bytes(mutated(whole, data.draw))
    attempt(tmp_path)


def replaced(config: dict, draw) -> dict:
    """One to three values replaced, also inside of a section."""
    config = json.loads(json.dumps(config))
    for _ in range(draw(st.integers(1, 3))):
        place = config
        key = draw(st.sampled_from([k for k in sorted(place) if k != "model_type"]))
        if isinstance(place[key], dict) and place[key] and draw(st.booleans()):
            place = place[key]
            key = draw(st.sampled_from(sorted(place)))
        place[key] = draw(VALUES)
    return config


@settings(max_examples=100, **SETTINGS)
@given(data=st.data())
def test_odd_values_in_a_config(data, folders, tmp_path):
    name = data.draw(st.sampled_from(sorted(CONFIGS)))
    shutil.copytree(folders[name], tmp_path, dirs_exist_ok=True)
    text = json.dumps(replaced(CONFIGS[name], data.draw))
    (tmp_path / "config.json").write_text(text)
    attempt(tmp_path)


@settings(max_examples=600, **SETTINGS)
@given(data=st.data())
def test_odd_configs_of_every_family(data):
    config = replaced(CASES[data.draw(st.sampled_from(sorted(CASES)))], data.draw)
    with contextlib.suppress(TfspeedError):
        config_from_hf(config)


@pytest.mark.parametrize(("name", "key", "value"), [
    ("llama3", "vocab_size", 10**9), ("llama3", "intermediate_size", 2**31 - 1),
    ("llama3", "num_hidden_layers", 10_000), ("llama3", "head_dim", 65_536),
    ("falcon", "ffn_hidden_size", 10**9), ("gemma3_text", "num_attention_heads", 65_536)])
def test_a_config_that_would_fill_the_memory(name, key, value, folders, tmp_path):
    shutil.copytree(folders[name], tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name] | {key: value}))
    with pytest.raises(TfspeedError, match=r"expected_shape|missing"):
        load_hf_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "null", "[" * 100_000, '{"model_type": "llama"',
                                  '{"vocab_size": ' + "9" * 5000 + "}", "\xff", "{}"])
def test_configs_that_are_no_config(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(TfspeedError):
        load_hf_folder(tmp_path)
