"""Damaged GGUF files either still load or raise TfspeedError, at once and in little memory."""

import resource
import time

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.models.test_gguf import contents, write
from tfspeed.errors import TfspeedError
from tfspeed.models.checkpoint import build_decoder
from tfspeed.models.gguf_loader import load_gguf

BYTE_LEVEL = {
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "b", "c", "ab", "abc", "é"],
    "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 1, 1, 1],
    "tokenizer.ggml.merges": ["a b", "ab c"],
    "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.chat_template": "{{ messages }}"}
SENTENCE_PIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "▁a", "b"],
    "tokenizer.ggml.token_type": [2, 3, 3, 6, 1, 1, 1, 1],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -0.5, -4.0],
    "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.add_bos_token": True}
SMALL = {"num_layers": 1, "vocabulary_size": 8, "mlp_dim": 8}
CHANGES = {"llama": {**SMALL, "hidden_dim": 32, "head_dim": 8},  # wide enough for a Q8_0 block
           "gemma2": {**SMALL, "sliding_layers": (True,)}}
EXTREMES = (0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def tiny(folder, case, tokenizer):
    """The bytes of a small file and the offsets at which its header's fields begin."""
    config, metadata, tensors, _ = contents(case, CHANGES[case])
    types = {}
    if case == "llama":
        types["token_embd.weight"] = kind = gguf.GGMLQuantizationType.Q8_0
        tensors["token_embd.weight"] = gguf.quants.quantize(tensors["token_embd.weight"], kind)
    path = write(folder / f"{case}.gguf", config.family, metadata | tokenizer, tensors, types)
    reader = gguf.GGUFReader(path)
    parts = [part for field in reader.fields.values() for part in field.parts]
    parts += [part for tensor in reader.tensors for part in tensor.field.parts]
    start = reader.data.ctypes.data
    return path.read_bytes(), sorted({part.ctypes.data - start for part in parts if part.size})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gguf")


def mutate(data: bytes, offsets: list[int], draw) -> bytes:
    if not data:
        return data
    # Half of the mutations hit the beginning of a field: a length, a count, a type.
    at = min(draw(st.one_of(st.sampled_from(offsets), st.integers(0, len(data)))), len(data))
    kind = draw(st.sampled_from(("flip", "truncate", "insert", "duplicate", "remove", "field")))
    if kind == "flip":
        at = min(at, len(data) - 1)
        return data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1:]
    if kind == "truncate":
        return data[:max(at, 1)]
    if kind == "insert":
        return data[:at] + draw(st.binary(min_size=1, max_size=16)) + data[at:]
    if kind == "field":
        size = draw(st.sampled_from((4, 8)))
        value = draw(st.sampled_from(EXTREMES)) % 2**(8 * size)
        return data[:at] + value.to_bytes(size, "little") + data[at + size:]
    end = at + draw(st.integers(1, 64))
    return data[:end] + data[at:] if kind == "duplicate" else data[:at] + data[end:]


@pytest.mark.parametrize(("case", "tokenizer"), [("llama", BYTE_LEVEL),
                                                 ("gemma2", SENTENCE_PIECE)])
def test_damaged_files(case, tokenizer, folder):
    whole, offsets = tiny(folder, case, tokenizer)
    path = folder / "damaged.gguf"
    outcomes = {"loaded": 0, "refused": 0}

    @settings(max_examples=250, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data):
        damaged = whole
        for _ in range(data.draw(st.integers(1, 3))):
            damaged = mutate(damaged, offsets, data.draw)
        path.write_bytes(damaged)
        start = time.monotonic()
        try:
            build_decoder(load_gguf(path))
            outcomes["loaded"] += 1
        except TfspeedError:
            outcomes["refused"] += 1
        assert time.monotonic() - start < 2

    path.write_bytes(whole)
    assert load_gguf(path).tokenizer is not None
    build_decoder(load_gguf(path))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB
    assert min(outcomes.values()) > 5
