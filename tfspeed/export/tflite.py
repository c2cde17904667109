"""A decoder as one `.tflite` file that says itself what its signatures are.

Three kinds of signature share one set of weights:

- `decode_<capacity>` reads one token and gives its logits;
- `prefill_<length>_<capacity>` reads `length` tokens into the caches and gives no logits: a prompt
  goes through it all but for its last token, which goes through decode;
- `score` reads a whole window and gives the logits of every token: for perplexity on the device.

A step costs what its capacity costs, so an app begins with the smallest and, when that is full,
copies the caches' rows into the next. A prefill must end inside the cache: LiteRT moves one that
does not, silently. Give the runtime a weight cache (`xnnpack_weight_cache_path`, a file or
`:memory:`), or every signature keeps packed weights of its own.
"""

import dataclasses
import json
import mmap
from pathlib import Path

from tfspeed.errors import TfspeedError
from tfspeed.litert.decoder import Lowering, decode_name, prefill_name
from tfspeed.litert.graph import TfliteFile
from tfspeed.litert.pack import PackedDecoder
from tfspeed.litert.runtime import check_file
from tfspeed.models.config import DecoderConfig
from tfspeed.models.language_model import LanguageModel

METADATA = "tfspeed"  # the name of the entry that describes the signatures, in JSON
SCORE = "score"
_SMALLEST, _STEP = 256, 4  # capacities: each signature costs 2 % of an int8 file
_PREFILLS = (32, 128)
_SCORED = 256  # tokens of a window, as tfspeed.measure takes them


@dataclasses.dataclass(frozen=True)
class Signature:
    """One signature: it reads `length` tokens into caches of `capacity` slots."""

    name: str
    length: int
    capacity: int
    logits: bool


def plan(config: DecoderConfig, context: int) -> list[Signature]:
    """The signatures of a file that holds texts of up to `context` tokens."""
    capacities, size = {context}, _SMALLEST
    while size < context:
        capacities.add(size)
        size *= _STEP
    for rope in (config.rope, config.local_rope):
        # LongRoPE changes its angles where a text outgrows the original context.
        if rope and rope.long_factors and rope.original_context < context:
            capacities.add(rope.original_context)
    return [_score(config)] + [
        signature for size in sorted(capacities) for signature in (
            Signature(decode_name(size), 1, size, True),
            *(Signature(prefill_name(length, size), length, size, False)
              for length in _PREFILLS if length < size))]


def plan_for_litert_lm(config: DecoderConfig, context: int) -> list[Signature]:
    """Named as LiteRT-LM's runtime looks for them: `prefill_<length>` and `decode`, one capacity.

    The runtime takes the shortest prefill that holds the rest of a prompt, so near the end of the
    context that can reach over it: the caches are larger than the context by as much.
    """
    lengths = [length for length in _PREFILLS if length < context] or [context]
    over = max(longer - shorter - 1
               for shorter, longer in zip([0, *lengths], lengths, strict=False))
    capacity = -(-(context + over) // 32) * 32
    return [_score(config), Signature("decode", 1, capacity, True),
            *(Signature(f"prefill_{length}", length, capacity, False) for length in lengths)]


def _score(config: DecoderConfig) -> Signature:
    length = min(_SCORED, config.context_length)
    return Signature(SCORE, length, length, True)


def write(path: Path, model: LanguageModel, packed: PackedDecoder, context: int,
          signatures: list[Signature]) -> None:
    """Writes the file of a model over a `Decoder`."""
    config = model.keras_model.config
    file = TfliteFile(f"{model.name}, exported by tfspeed")
    for s in signatures:
        Lowering(file, config, packed, s.name, 1, s.length, s.capacity,
                 longest=min(s.capacity, context)).write(s.logits)
    describe(file, model, context, **of_texts(model, signatures))
    file.write(path)


def describe(file: TfliteFile, model: LanguageModel, context: int, **more) -> None:
    """Puts into the file what `description` reads."""
    described = {
        "version": 1, "model": model.name, "context": context,
        "vocabulary": model.vocabulary_size,
        "stop_tokens": list(model.tokenizer.eos_ids) if model.tokenizer else [], **more}
    file.add_metadata(METADATA, json.dumps(described).encode())


def of_texts(model: LanguageModel, signatures: list[Signature]) -> dict:
    """What is described of a model that goes on with a text."""
    tokenizer = model.tokenizer
    return {"signatures": [dataclasses.asdict(s) for s in signatures],
            "first_token": tokenizer.bos_id if tokenizer and tokenizer.add_bos else None,
            "chat_template": tokenizer.chat_template if tokenizer else None}


def description(path: Path) -> dict:
    """What `write` put into the file about itself.

    Raises:
        TfspeedError: the file is none, damaged, truncated, of another version, or not ours.
    """
    check_file(path)
    try:
        text = _entry(path, METADATA)
        described = text and json.loads(text)
    except Exception as error:  # flatbuffers raises whatever a wrong offset leads to
        raise TfspeedError("This .tflite file is damaged: its description cannot be read.",
                           path=str(path)) from error
    if described is None:
        raise TfspeedError("This .tflite file was not made by scripts/export.py.", path=str(path))
    return described


def _entry(path: Path, name: str) -> bytes | None:
    """A metadata entry, read without the weights."""
    from ai_edge_litert import schema_py_generated as schema
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        model = schema.Model.GetRootAs(data, 0)
        for i in range(model.MetadataLength()):
            if model.Metadata(i).Name() == name.encode():
                buffer = model.Buffers(model.Metadata(i).Buffer())
                if buffer.Size():  # a large one lies behind the flatbuffer
                    return data[buffer.Offset():buffer.Offset() + buffer.Size()]
                return bytes(map(buffer.Data, range(buffer.DataLength())))
    return None
