"""A decoder as a `.litertlm` bundle, which LiteRT-LM's runtimes (Android, iOS, desktop) load.

A bundle is a `.tflite` file whose signatures have the names that the runtime looks for, the
tokenizer, and what the runtime must know: stop tokens, first token, context, chat template.
Source: the fields of `litert-lm-builder`, LiteRT-LM's own tool, which also writes the file.
"""

import contextlib
import io
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tfspeed.errors import TfspeedError
from tfspeed.export import tflite
from tfspeed.litert.pack import PackedDecoder
from tfspeed.models.config import DecoderConfig
from tfspeed.models.language_model import LanguageModel

_MAGIC = b"LITERTLM"
_COPY = 1 << 20  # bytes copied at a time

# The runtime hands a message's content to the template as a list of parts; templates of text
# models expect a string.
_PLAIN_TEXT = """\
{%- set plain = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set plain.messages = plain.messages + [message] -%}
{%- else -%}
{%- set text = namespace(all='') -%}
{%- for part in message['content'] -%}{%- set text.all = text.all + part['text'] -%}{%- endfor -%}
{%- set plain.messages = plain.messages + [{'role': message['role'], 'content': text.all}] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = plain.messages -%}
"""
_NO_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def check(model: LanguageModel) -> None:
    """Refuses a model that no bundle can be made of."""
    if model.tokenizer is None:
        raise TfspeedError("A .litertlm bundle holds the tokenizer, and this model has none.",
                           model=model.name, hint="Use --format=tflite.")


def notes(config: DecoderConfig, context: int) -> list[str]:
    """What the manifest must say of a bundle: it has one set of LongRoPE's angles, for it has one
    capacity, and the runtime does not choose between signatures."""
    original = [rope.original_context for rope in (config.rope, config.local_rope)
                if rope and rope.long_factors and rope.original_context < context]
    if not original:
        return []
    return [f"LongRoPE: the angles are those of texts of more than {min(original)} tokens, also "
            f"while a text is shorter, which costs it some quality. --context={min(original)} "
            "makes a bundle with those of short texts, and --format=tflite a file with both."]


def write(path: Path, model: LanguageModel, packed: PackedDecoder, context: int) -> None:
    """Writes the bundle of a model over a `Decoder`."""
    import litert_lm_builder as builder
    made = builder.LitertLmFileBuilder()
    made.add_system_metadata(builder.Metadata(key="Authors", value="tfspeed",
                                              dtype=builder.DType.STRING))
    # Beside the bundle: there is room for it, and a temporary folder may be memory.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".litertlm-") as folder:
        parts = Path(folder)
        tflite.write(parts / "model.tflite", model, packed, context,
                     tflite.plan_for_litert_lm(model.keras_model.config, context))
        model.tokenizer.backend.save(str(parts / "tokenizer.json"))
        (parts / "metadata.pb").write_bytes(metadata(model, context).SerializeToString())
        made.add_tflite_model(str(parts / "model.tflite"), builder.TfLiteModelType.PREFILL_DECODE)
        made.add_hf_tokenizer(str(parts / "tokenizer.json"))
        made.add_llm_metadata(str(parts / "metadata.pb"))
        with path.open("wb") as stream:
            made.build(stream, validate_metadata=True)


def metadata(model: LanguageModel, context: int):
    """What the runtime must know of the model, as LiteRT-LM's `LlmMetadata` message."""
    from litert_lm_builder.runtime.proto.llm_metadata_pb2 import LlmMetadata
    tokenizer = model.tokenizer
    template = _PLAIN_TEXT + (tokenizer.chat_template or _NO_TEMPLATE)
    found = LlmMetadata(max_num_tokens=context, jinja_prompt_template=template,
                        supports_thinking=False, supports_function_calling=False)
    found.llm_model_type.generic_model.SetInParent()
    # The runtime puts it in front itself, and gives a template's `bos_token` as nothing; only a
    # template that spells it out must go without.
    if tokenizer.add_bos and tokenizer.backend.id_to_token(tokenizer.bos_id) not in template:
        found.start_token.token_ids.ids.append(tokenizer.bos_id)
    for token in tokenizer.eos_ids:
        found.stop_tokens.add().token_ids.ids.append(token)
    # Greedy unless an app asks otherwise. (GREEDY is a type that the runtime does not know yet.)
    sampler = found.sampler_params
    sampler.type, sampler.k, sampler.p, sampler.temperature = sampler.TOP_P, 1, 1.0, 1.0
    return found


@contextlib.contextmanager
def model_file(path: Path) -> Iterator[Path]:
    """The `.tflite` file inside a bundle, copied out for as long as the block runs.

    Raises:
        TfspeedError: the file is no bundle, damaged, truncated or of another version.
    """
    begin, end = _section(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model.tflite"
        with path.open("rb") as stream, copy.open("wb") as to:
            stream.seek(begin)
            for at in range(begin, end, _COPY):
                to.write(stream.read(min(_COPY, end - at)))
        yield copy


def _section(path: Path) -> tuple[int, int]:
    """Where the `.tflite` file begins and ends in a bundle."""
    from litert_lm_builder import litertlm_core, litertlm_peek
    from litert_lm_builder import litertlm_header_schema_py_generated as schema
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(litertlm_core.HEADER_BEGIN_BYTE_OFFSET)
    if head[:8] != _MAGIC:
        raise TfspeedError("This is no .litertlm file: it does not begin with LITERTLM.",
                           path=str(path))
    damaged = TfspeedError("This .litertlm file is damaged or truncated.", path=str(path),
                           bytes=size)
    if len(head) < litertlm_core.HEADER_BEGIN_BYTE_OFFSET:
        raise damaged
    major = struct.unpack_from("<I", head, 8)[0]
    if major != litertlm_core.LITERTLM_MAJOR_VERSION:
        raise TfspeedError("Only version "
                           f"{litertlm_core.LITERTLM_MAJOR_VERSION} of .litertlm files is read.",
                           path=str(path), version=major)
    if struct.unpack_from("<Q", head, litertlm_core.HEADER_END_LOCATION_BYTE_OFFSET)[0] > size:
        raise damaged
    try:
        header = litertlm_peek.read_litertlm_header(str(path), io.StringIO())
        table = header.SectionMetadata()
        sections = [table.Objects(i) for i in range(table.ObjectsLength())]
        found = [(s.BeginOffset(), s.EndOffset()) for s in sections]
        model = next(where for s, where in zip(sections, found, strict=True)
                     if s.DataType() == schema.AnySectionDataType.TFLiteModel)
    except Exception as error:  # flatbuffers raises whatever a wrong offset leads to
        raise damaged from error
    if max(end for _, end in found) > size or model[0] >= model[1]:
        raise damaged
    return model
