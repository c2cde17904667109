"""glassllm's tokenizer: BPE over characters, spaces written as ▁."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tfspeed.errors import TfspeedError
from tfspeed.models.tokenizer import Tokenizer

_SPECIAL = ["<pad>", "<unk>", "<bos>", "<eos>"]


def tokenizer_from_glassllm(path: str | Path) -> Tokenizer:
    """Reads `en.tokenizer.json`: the alphabet and the merges; ids follow from their order."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        merges = [(left, right) for left, right in data["merges"]]
        tokens = _SPECIAL + data["alphabet"] + [left + right for left, right in merges]
        vocabulary = {token: i for i, token in enumerate(tokens)}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges,
                                                  unk_token="<unk>"))
    except Exception as error:  # tokenizers raises bare Exception on inconsistent tables
        raise TfspeedError("This is not a glassllm tokenizer.", path=str(path),
                           cause=str(error)[:200]) from error
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"\n|▁*[^▁\n]+|▁+"),
                                                 behavior="isolated")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("<unk>", "⁇"), decoders.Replace("▁", " "), decoders.Fuse()])
    # <unk> stays an ordinary token: glassllm prints it, as ⁇, and skips the others.
    backend.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False)
                                for t in _SPECIAL if t != "<unk>"])
    return Tokenizer(backend, bos_id=vocabulary["<bos>"], eos_ids=[vocabulary["<eos>"]])
