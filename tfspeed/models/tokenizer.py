"""Text ⇄ token ids over `tokenizers`, with the model's special ids and chat template."""

import datetime
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import jinja2.ext
import jinja2.sandbox
import tokenizers

from tfspeed.errors import TfspeedError
from tfspeed.models.text_stream import TextStream


class Tokenizer:
    """A tokenizer and what a model needs beside it.

    Attributes:
        backend: a `tokenizers.Tokenizer`.
        bos_id: id of the token that begins a text, or None.
        eos_ids: ids that end an answer.
        add_bos: whether `encode` puts `bos_id` in front.
        chat_template: Jinja source, or None.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, bos_id: int | None = None,
                 eos_ids: Iterable[int] = (), add_bos: bool = False,
                 chat_template: str | None = None):
        self.backend = backend
        self.bos_id = bos_id
        self.eos_ids = tuple(dict.fromkeys(int(i) for i in eos_ids))
        self.add_bos = add_bos and bos_id is not None
        self.chat_template = chat_template

    @property
    def vocabulary_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_bos: bool | None = None) -> list[int]:
        """Ids of a text; special tokens written out in it (`<|im_start|>`) are taken as such."""
        # Undecodable bytes of a command line arrive as lone surrogates, which nothing can encode.
        text = text.encode("utf-8", "replace").decode("utf-8")
        ids = self.backend.encode(text, add_special_tokens=False).ids
        add = self.add_bos if add_bos is None else add_bos and self.bos_id is not None
        return [self.bos_id, *ids] if add and ids[:1] != [self.bos_id] else ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, without special tokens."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def stream(self, ids: Iterable[int], after: Iterable[int] = ()) -> Iterator[str]:
        """Pieces of text as ids arrive, see `TextStream`."""
        stream = TextStream(self.decode, after)
        for token in ids:
            if piece := stream.push(token):
                yield piece
        if rest := stream.rest():
            yield rest

    def chat(self, messages: list[dict], add_generation_prompt: bool = True) -> str:
        """The chat template filled with `[{"role": …, "content": …}, …]`.

        A template is a program out of a model file: it runs in Jinja's sandbox.
        """
        if not self.chat_template:
            raise TfspeedError("This model has no chat template.",
                               hint="Encode the prompt as plain text instead.")
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationBlock])
        # Hugging Face's filter: Jinja's own escapes for HTML.
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(
            value, ensure_ascii=False, indent=indent)
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda f: datetime.datetime.now().strftime(f)
        eos = self._token(self.eos_ids[0]) if self.eos_ids else ""
        try:
            return environment.from_string(self.chat_template).render(
                messages=messages, add_generation_prompt=add_generation_prompt,
                tools=None, documents=None, bos_token=self._token(self.bos_id), eos_token=eos)
        except TfspeedError:
            raise
        except Exception as error:
            # Any Python error can come out of a template: it is a program in the model file.
            raise TfspeedError("The model's chat template could not be rendered.",
                               cause=f"{type(error).__name__}: {error}"[:300]) from error

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, as Hugging Face folders have them.

        Several end tokens fit only into generation_config.json, whose other entries stay.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": self.add_bos,
                  "bos_token": self._token(self.bos_id) or None,
                  "eos_token": self._token(self.eos_ids[0]) if self.eos_ids else None,
                  "chat_template": self.chat_template}
        (folder / "tokenizer_config.json").write_text(
            json.dumps({k: v for k, v in config.items() if v is not None}, indent=1),
            encoding="utf-8")
        generation = read_json(folder / "generation_config.json")
        generation |= {"bos_token_id": self.bos_id, "eos_token_id": list(self.eos_ids)}
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=1),
                                                       encoding="utf-8")

    def _token(self, token_id: int | None) -> str:
        return "" if token_id is None else self.backend.id_to_token(token_id) or ""


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks the answer for training; here its contents are simply printed."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message):
    raise TfspeedError("The model's chat template refuses these messages.", message=str(message))


def tokenizer_from_folder(folder: str | Path) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder; None if it has no tokenizer.json."""
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        return None
    try:
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception
        raise TfspeedError("tokenizer.json is damaged.", folder=str(folder),
                           cause=str(error)[:300]) from error
    # Settings of the training run that some files keep: they would cut a long text short.
    backend.no_truncation()
    backend.no_padding()
    config = read_json(folder / "tokenizer_config.json")
    bos = backend.token_to_id(_content(config.get("bos_token")))
    eos = [backend.token_to_id(_content(config.get("eos_token")))]
    for name in ("generation_config.json", "config.json"):
        ids = read_json(folder / name).get("eos_token_id")
        eos += ids if isinstance(ids, list) else [ids]
    size = backend.get_vocab_size(with_added_tokens=True)
    add_bos = config.get("add_bos_token")
    return Tokenizer(
        backend, bos_id=bos, eos_ids=[i for i in eos if isinstance(i, int) and 0 <= i < size],
        add_bos=add_bos if isinstance(add_bos, bool) else _processor_adds(backend, bos),
        chat_template=_chat_template(folder, config))


def read_json(path: Path) -> dict:
    """A JSON object; {} where the file is missing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise TfspeedError("A JSON file of the model is damaged.", path=str(path),
                           cause=str(error)[:200]) from error
    if not isinstance(value, dict):
        raise TfspeedError("A JSON file of the model must hold an object.", path=str(path))
    return value


def _content(token) -> str:
    """tokenizer_config.json writes a token as a string or as {"content": …}."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else ""


def _processor_adds(backend, bos: int | None) -> bool:
    """Whether tokenizer.json's own post-processor puts the BOS in front (Llama 3 does)."""
    return bos is not None and backend.encode("a", add_special_tokens=True).ids[:1] == [bos]


def _chat_template(folder: Path, config: dict) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default") or next(iter(named.values()), None)
    return template if isinstance(template, str) else None
