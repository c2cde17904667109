"""Tokenizers out of GGUF metadata: byte-level BPE (`gpt2`) and SentencePiece BPE (`llama`).

Keys and pre-tokenizer names: llama.cpp's gguf-py constants and src/llama-vocab.cpp.
"""

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tfspeed.errors import TfspeedError
from tfspeed.models.tokenizer import Tokenizer

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # tokenizer.ggml.token_type
_END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|eot|>", "<end_of_turn>", "<|end|>",
               "<|endoftext|>")
_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
           r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# Regular expressions by pre-tokenizer name; a name not here splits as GPT-2 does.
_PATTERNS = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "smaug-bpe", "smollm3"),
                    _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"),
                    _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")),
}
_SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell")


def tokenizer_from_gguf(metadata: dict) -> Tokenizer | None:
    """Builds the tokenizer that a GGUF file describes.

    Args:
        metadata: contents of the file's fields, by key.

    Returns:
        None if the file describes no tokenizer.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        return None
    makers = {"gpt2": _byte_level, "llama": _sentence_piece}
    if not isinstance(kind, str) or kind not in makers:
        raise TfspeedError("The GGUF tokenizer must be one of gpt2, llama.", model=kind)
    tokens = _list(metadata, "tokens", str)
    if len(set(tokens)) != len(tokens):
        # Padding entries may repeat; the first keeps its name.
        tokens = _distinct(tokens)
    try:
        backend = makers[kind](metadata, tokens)
        types = _list(metadata, "token_type", int) if _has(metadata, "token_type") else []
        if types and len(types) != len(tokens):
            raise TfspeedError("A GGUF tokenizer needs one type for each token.",
                               tokens=len(tokens), token_types=len(types))
        _add_special(backend, tokens, types)
    except TfspeedError:
        raise
    except Exception as error:  # tokenizers raises bare Exception on inconsistent tables
        raise TfspeedError("The GGUF tokenizer's tables are inconsistent.",
                           cause=str(error)[:200]) from error
    template = metadata.get("tokenizer.chat_template")
    bos = _id(metadata, "bos_token_id", tokens)
    default_bos = kind == "llama"  # SentencePiece models begin with <s> unless told not to
    return Tokenizer(
        backend, bos_id=bos, eos_ids=_end_ids(metadata, tokens, types),
        add_bos=metadata.get("tokenizer.ggml.add_bos_token", default_bos) is True,
        chat_template=template if isinstance(template, str) else None)


def _byte_level(metadata, tokens) -> tokenizers.Tokenizer:
    merges = [tuple(m.split(" ")) for m in _list(metadata, "merges", str)]
    if any(len(m) != 2 for m in merges):
        raise TfspeedError("A merge of the GGUF tokenizer must be two tokens.",
                           merge=next(m for m in merges if len(m) != 2))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges,
                                              ignore_merges=False))
    name = metadata.get("tokenizer.ggml.pre", "default")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if name in _PATTERNS:
        split = pre_tokenizers.Split(tokenizers.Regex(_PATTERNS[name]), behavior="isolated")
        steps = [split, bytes_only]
    elif name in _SINGLE_DIGITS:
        steps = [pre_tokenizers.Digits(individual_digits=True),
                 pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    if name == "qwen2":
        backend.normalizer = normalizers.NFC()
    return backend


def _sentence_piece(metadata, tokens) -> tokenizers.Tokenizer:
    scores = _list(metadata, "scores", (int, float))
    if len(scores) != len(tokens):
        raise TfspeedError("A GGUF tokenizer needs one score for each token.",
                           tokens=len(tokens), scores=len(scores))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    unknown = _id(metadata, "unknown_token_id", tokens)
    backend = tokenizers.Tokenizer(models.BPE(
        vocab=vocabulary, merges=_merges(tokens, vocabulary, scores), byte_fallback=True,
        fuse_unk=True, unk_token=None if unknown is None else tokens[unknown]))
    steps = [normalizers.Replace(" ", "▁")]
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True) is not False
    if prefix:
        steps.insert(0, normalizers.Prepend("▁"))
    backend.normalizer = normalizers.Sequence(steps)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        parts.append(decoders.Strip(content=" ", left=1, right=0))
    backend.decoder = decoders.Sequence(parts)
    return backend


def _merges(tokens, vocabulary, scores) -> list[tuple[str, str]]:
    """SentencePiece joins the pair whose union scores best: the same as merging in the order of
    the unions' scores, every split of a piece into two pieces counting as a merge."""
    found = []
    for token, index in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = vocabulary.get(token[:cut]), vocabulary.get(token[cut:])
            if left is not None and right is not None:
                found.append((-scores[index], index, left, right))
    found.sort()
    return [(tokens[left], tokens[right]) for _, _, left, right in found]


def _add_special(backend, tokens, types) -> None:
    special = [t for t, kind in zip(tokens, types, strict=False) if kind == _CONTROL and t]
    defined = [t for t, kind in zip(tokens, types, strict=False) if kind == _USER_DEFINED and t]
    backend.add_special_tokens([tokenizers.AddedToken(t, special=True, normalized=False)
                                for t in special])
    backend.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in defined])


def _end_ids(metadata, tokens, types) -> list[int]:
    ids = [_id(metadata, key, tokens) for key in ("eos_token_id", "eot_token_id")]
    kinds = dict(zip(tokens, types, strict=False))
    named = {token: i for i, token in enumerate(tokens) if token in _END_TOKENS}
    ids += [i for token, i in named.items() if kinds.get(token) == _CONTROL]
    return [i for i in ids if i is not None]


def _has(metadata, key) -> bool:
    return metadata.get(f"tokenizer.ggml.{key}") is not None


def _list(metadata, key, kind) -> list:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list) or not all(isinstance(v, kind) for v in value):
        raise TfspeedError(f"tokenizer.ggml.{key} must be an array of "
                           f"{'strings' if kind is str else 'numbers'}.",
                           type=type(value).__name__)
    return value


def _id(metadata, key, tokens) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{key}")
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(tokens)
    return value if valid else None


def _distinct(tokens: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    return [t if seen.setdefault(t, i) == i else f"{t}<duplicate {i}>"
            for i, t in enumerate(tokens)]
