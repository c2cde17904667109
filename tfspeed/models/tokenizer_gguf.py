"""Tokenizers out of GGUF metadata: byte-level BPE (`gpt2`) and SentencePiece BPE (`llama`).

Keys and pre-tokenizer names: llama.cpp's gguf-py constants and src/llama-vocab.cpp.
"""

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tfspeed.errors import TfspeedError
from tfspeed.models.tokenizer import Tokenizer

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6  # tokenizer.ggml.token_type
_END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|eot|>", "<end_of_turn>", "<|end|>",
               "<|endoftext|>")
_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
           r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
           r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
           r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# These take a whole word that is a token without merging, and begin with BOS unless told not to.
_WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0",
                "lfm2", "tekken")
# Regular expressions by pre-tokenizer name; a name not here splits as GPT-2 does.
_PATTERNS = {
    **dict.fromkeys((*_WHOLE_WORDS, "smaug-bpe", "dbrx", "chatglm-bpe", "glm4", "smollm3"),
                    _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"),
                    _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")),
    "tekken": _TEKKEN,
}
# GPT-4o's: as tekken's, with English endings and up to three digits.
_GPT_4O = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
           r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
           r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
           r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
           r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_PATTERNS |= dict.fromkeys(("gpt-4o", "llama4", "gpt-oss"), _GPT_4O)
_GPT_2 = ("default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling",
          "roberta-bpe", "modern-bert", "gigachat", "exaone4")
_SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone",
                  "minerva-7b")
_COMPOSED = ("qwen2", "deepseek-r1-qwen", "command-r")  # Hugging Face brings their text to NFC


def tokenizer_from_gguf(metadata: dict) -> Tokenizer | None:
    """Builds the tokenizer that a GGUF file describes.

    Args:
        metadata: contents of the file's fields, by key.

    Returns:
        None if the file describes no tokenizer.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab"):
        return None
    makers = {"gpt2": _byte_level, "llama": _sentence_piece}
    if not isinstance(kind, str) or kind not in makers:
        raise TfspeedError("The GGUF tokenizer must be one of gpt2, llama.", model=kind,
                           hint="Give the model as a Hugging Face folder instead.")
    tokens = _distinct(_list(metadata, "tokens", str))
    types = _list(metadata, "token_type", int) if _has(metadata, "token_type") else []
    if types and len(types) != len(tokens):
        raise TfspeedError("A GGUF tokenizer needs one type for each token.",
                           tokens=len(tokens), token_types=len(types))
    types = types or [1] * len(tokens)
    try:
        backend = makers[kind](metadata, tokens, types)
        _add_special(backend, tokens, types)
    except TfspeedError:
        raise
    except Exception as error:  # tokenizers raises bare Exception on inconsistent tables
        raise TfspeedError("The GGUF tokenizer's tables must agree with each other.",
                           cause=str(error)[:200], hint="The file is damaged.") from error
    template = metadata.get("tokenizer.chat_template")
    default_bos = kind == "llama" or _pre(metadata) in _WHOLE_WORDS
    return Tokenizer(
        backend, bos_id=_id(metadata, "bos_token_id", tokens),
        eos_ids=_end_ids(metadata, tokens),
        add_bos=metadata.get("tokenizer.ggml.add_bos_token", default_bos) is True,
        chat_template=template if isinstance(template, str) else None)


def pre_tokenizer_note(metadata: dict) -> tuple[str, ...]:
    """What a report must say where a text may be split otherwise than the model expects."""
    name = _pre(metadata)
    if metadata.get("tokenizer.ggml.model") != "gpt2" or name in (
            *_PATTERNS, *_GPT_2, *_SINGLE_DIGITS, "falcon"):
        return ()
    return (f"Its pre-tokenizer, {name}, is not known here: text is split as GPT-2 does, which may "
            "cost quality. Its Hugging Face folder has the exact one.",)


def _byte_level(metadata, tokens, types) -> tokenizers.Tokenizer:
    merges = [tuple(m.split(" ")) for m in _list(metadata, "merges", str)]
    if any(len(m) != 2 for m in merges):
        raise TfspeedError("A merge of the GGUF tokenizer must be two tokens.",
                           merge=next(m for m in merges if len(m) != 2))
    name = _pre(metadata)
    backend = tokenizers.Tokenizer(models.BPE(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges,
        ignore_merges=name in _WHOLE_WORDS))
    if name in _PATTERNS:
        split = pre_tokenizers.Split(tokenizers.Regex(_PATTERNS[name]), behavior="isolated")
        steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    else:
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]  # GPT-2's pattern
        if name in _SINGLE_DIGITS:
            steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
        elif name == "falcon":
            steps = [pre_tokenizers.Punctuation("contiguous"), *steps, pre_tokenizers.Digits(),
                     pre_tokenizers.Split(tokenizers.Regex("[0-9][0-9][0-9]"), "isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    if name in _COMPOSED:
        backend.normalizer = normalizers.NFC()
    return backend


def _sentence_piece(metadata, tokens, types) -> tokenizers.Tokenizer:
    scores = _list(metadata, "scores", (int, float))
    if len(scores) != len(tokens):
        raise TfspeedError("A GGUF tokenizer needs one score for each token.",
                           tokens=len(tokens), scores=len(scores))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    unknown = _id(metadata, "unknown_token_id", tokens)
    if unknown is None and _UNKNOWN in types:
        unknown = types.index(_UNKNOWN)
    backend = tokenizers.Tokenizer(models.BPE(
        vocab=vocabulary, merges=_merges(tokens, types, vocabulary, scores), byte_fallback=True,
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


def _merges(tokens, types, vocabulary, scores) -> list[tuple[str, str]]:
    """The merges that SentencePiece's scores amount to.

    SentencePiece joins the pair whose union scores best: the same as merging in the order of the
    unions' scores, every split of a piece into two pieces being a merge. Ties in the order of
    transformers' converter.
    """
    no_union = {_UNKNOWN, _CONTROL, _UNUSED, _BYTE}  # text never turns into these by merging
    found = []
    for index, (token, score) in enumerate(zip(tokens, scores, strict=True)):
        if types[index] in no_union:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-score, -cut, cut - len(token), index, left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _add_special(backend, tokens, types) -> None:
    """Marks tokens that are found in the text before anything else splits it."""
    special, defined = [], []
    for token, kind in zip(tokens, types, strict=True):
        if token and (kind == _CONTROL or token in _END_TOKENS):
            special.append(tokenizers.AddedToken(token, special=True, normalized=False))
        elif token and kind == _USER_DEFINED:
            defined.append(tokenizers.AddedToken(token, normalized=False))
    backend.add_special_tokens(special)
    backend.add_tokens(defined)


def _end_ids(metadata, tokens) -> list[int]:
    # The first is the file's own; a chat model often ends its turns with another one.
    ids = [_id(metadata, key, tokens) for key in ("eos_token_id", "eot_token_id")]
    ids += [i for i, token in enumerate(tokens) if token in _END_TOKENS]
    return [i for i in ids if i is not None]


def _pre(metadata) -> str:
    name = metadata.get("tokenizer.ggml.pre")
    return name if isinstance(name, str) else "default"


def _has(metadata, key) -> bool:
    return metadata.get(f"tokenizer.ggml.{key}") is not None


def _list(metadata, key, kind) -> list:
    value = metadata.get(f"tokenizer.ggml.{key}")
    # Only merges may be empty: a vocabulary of single bytes has none.
    if (not isinstance(value, list) or not all(isinstance(v, kind) for v in value)
            or not (value or key == "merges")):
        raise TfspeedError(f"tokenizer.ggml.{key} must be an array, not empty, of "
                           f"{'strings' if kind is str else 'numbers'}.",
                           type=type(value).__name__, hint="The file is damaged.")
    return value


def _id(metadata, key, tokens) -> int | None:
    """A token id; None if absent or, as some converters leave them, outside the vocabulary."""
    value = metadata.get(f"tokenizer.ggml.{key}")
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(tokens)
    return value if valid else None


def _distinct(tokens: list[str]) -> list[str]:
    """Padding entries may repeat: the first keeps its name."""
    seen: dict[str, int] = {}
    return [t if seen.setdefault(t, i) == i else f"{t}<duplicate {i}>"
            for i, t in enumerate(tokens)]
