"""`--verify`: 0 where all is as recorded, 1 where it is not, a clear word about anything else."""

import contextlib
import json
import shutil

import numpy as np
import pytest

from tests.export.conftest import export, with_tokenizer
from tests.litert.test_files import small_file
from tfspeed.errors import TfspeedError
from tfspeed.export import manifest, verify
from tfspeed.export.files import listing


@pytest.fixture
def copies(artifacts, tmp_path):
    """The artifacts with their manifests, free to be changed."""
    for path in artifacts.values():
        shutil.copy(manifest.path_of(path), tmp_path)
        if path.is_dir():
            shutil.copytree(path, tmp_path / path.name)
        else:
            shutil.copy(path, tmp_path)
    return {form: tmp_path / path.name for form, path in artifacts.items()}


def change(path, **entries):
    """Writes other entries into the manifest of an artifact."""
    file = manifest.path_of(path)
    record = json.loads(file.read_text())
    for name, value in entries.items():
        record[name] = value(record[name]) if callable(value) else value
    file.write_text(json.dumps(record))


def test_copies_are_equal(copies, capsys, caplog):
    for path in copies.values():
        assert verify.run(str(path)) == 0
        assert not [r for r in caplog.records if r.name == "absl"]  # of a SavedModel's gradients
        assert f"{path.name} is what its manifest says." in capsys.readouterr().out
    assert verify.run(f"{copies['saved_model']}/") == 0


@pytest.mark.parametrize("form", ["tflite", "litertlm", "saved_model"])
def test_a_tampered_weight(copies, form, capsys):
    path = copies[form]
    file = path / "variables" / "variables.data-00000-of-00001" if path.is_dir() else path
    content = bytearray(file.read_bytes())
    content[-2500] ^= 1  # among the weights, in a bundle's tokenizer or template
    file.write_bytes(content)
    assert verify.run(str(path)) == 1
    said = capsys.readouterr().out
    assert "mismatch" in said
    assert "changed or damaged after it was exported" in said
    assert "DIFFERENT" in said


def test_files_more_and_less(copies, capsys):
    folder = copies["saved_model"]
    (folder / "variables" / "more").write_text("x")
    assert verify.run(str(folder)) == 1
    assert "no such file" in capsys.readouterr().out
    (folder / "variables" / "more").unlink()
    (folder / "fingerprint.pb").unlink()
    assert verify.run(str(folder)) == 1
    assert "missing" in capsys.readouterr().out


def test_figures_and_answers_that_are_not_its_own(copies, capsys):
    def worse(quality):
        return quality | {"perplexity": quality["perplexity"] * 1.01}

    def other(probes):
        return [probes[0] | {"answer": "5 " * 16}, *probes[1:]]

    change(copies["tflite"], quality=worse)
    assert verify.run(str(copies["tflite"])) == 1
    assert "what its manifest says: perplexity, perplexity_delta." not in capsys.readouterr().out
    change(copies["litertlm"], probes=other)
    assert verify.run(str(copies["litertlm"])) == 1
    assert "answer 0: The capital of France is" in capsys.readouterr().out


def test_another_model_under_the_same_name(copies, tmp_path):
    """Its bytes are right once the list of files is, but not what it answers."""
    from tests.conftest import tiny_decoder
    model = with_tokenizer(tiny_decoder())
    for weight in model.keras_model.weights[:3]:
        weight.assign(np.roll(weight.numpy(), 1, -1))
    (tmp_path / "other").mkdir()
    other = export(model, "tflite", tmp_path / "other", "int8")
    shutil.copy(other, copies["tflite"])
    change(copies["tflite"], files=listing(copies["tflite"]))
    assert verify.run(str(copies["tflite"])) == 1


def without_manifest(path):
    manifest.path_of(path).unlink()


def truncated(path):
    path.write_bytes(path.read_bytes()[:-3000])


def of_another_version(path):
    """In a bundle's header; in the flatbuffer's root table for a `.tflite` file."""
    content = bytearray(path.read_bytes())
    if path.suffix == ".litertlm":
        content[8] = 99
        path.write_bytes(content)
    else:
        small_file(version=9).write(path)


def not_ours(path):
    small_file().write(path)


def text(path):
    path.write_text("hello " * 100)


def empty(path):
    path.write_bytes(b"")


def manifest_of(content):
    return lambda path: manifest.path_of(path).write_text(content)


@pytest.mark.parametrize(("form", "spoil", "words"), [
    ("tflite", without_manifest, "no manifest"),
    ("litertlm", without_manifest, "no manifest"),
    ("saved_model", without_manifest, "no manifest"),
    ("tflite", truncated, "truncated"),
    ("litertlm", truncated, "truncated"),
    ("tflite", of_another_version, "version=9"),
    ("litertlm", of_another_version, "version=99"),
    ("tflite", not_ours, "not made by scripts/export.py"),
    ("tflite", text, "no .tflite file"),
    ("litertlm", text, "no .litertlm file"),
    ("tflite", empty, "no .tflite file"),
    ("litertlm", empty, "no .litertlm file"),
    ("saved_model", lambda p: (p / "saved_model.pb").unlink(), "saved_model.pb"),
    ("tflite", manifest_of("{"), "cannot be read"),
    ("tflite", manifest_of("[]"), "version"),
    ("tflite", manifest_of('{"manifest_version": 2}'), "version=2"),
    ("tflite", manifest_of('{"manifest_version": 1}'), "entry='model'"),
    ("tflite", lambda p: change(p, format="litertlm"), "another format"),
    ("tflite", lambda p: change(p, files=[1]), "list of files"),
    ("tflite", lambda p: change(p, evaluation={}), "run again"),
    ("tflite", lambda p: change(p, quality={"perplexity": "low"}), "run again"),
    ("tflite", lambda p: change(p, probes=[{"tokens": "", "answer": "1"}]), "run again"),
    ("tflite", lambda p: change(p, probes=[{"tokens": "1 " * 500, "answer": "1"}]), "run again"),
    ("tflite", lambda p: change(p, evaluation={"windows": ["99999 " * 96],
                                               "reference_top1": ["1 " * 95]}), "run again"),
])
def test_what_cannot_be_compared(copies, form, spoil, words):
    spoil(copies[form])
    with pytest.raises(TfspeedError, match=words):
        verify.run(str(copies[form]))


@pytest.mark.parametrize(("name", "words"), [
    ("nothing.tflite", "no such file"), ("x" * 300, "no such file"), ("a\0b", "no such file"),
    ("a.txt", "takes a .tflite, .litertlm")])
def test_names_of_no_artifact(tmp_path, name, words):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(TfspeedError, match=words):
        verify.run(f"{tmp_path}/{name}")


def test_a_bundle_damaged_anywhere_in_its_header_is_told(copies):
    """Never a crash: a word of ours, or a mismatch."""
    path = copies["litertlm"]
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for at in generator.integers(0, 600, 60):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1:])
        with contextlib.suppress(TfspeedError):
            assert verify.run(str(path)) == 1
