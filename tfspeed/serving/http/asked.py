"""What a client asks for: the JSON of OpenAI's API, checked field by field."""

import dataclasses
import secrets

from tfspeed.engines.sampling import Sampling
from tfspeed.errors import TfspeedError

_COMPLETION_TOKENS = 16  # OpenAI's default
_MAX_STOPS, _MAX_STOP_CHARS = 16, 1000
_ROLES = ("system", "developer", "user", "assistant", "tool")
# What would change the answer and is not there: refused, not ignored.
_UNSUPPORTED = ("tools", "functions", "logit_bias", "suffix", "echo", "response_format", "audio",
                "presence_penalty", "frequency_penalty")
_HARMLESS = {"response_format": {"type": "text"}}


class BadRequest(Exception):
    """A client's mistake.

    Attributes:
        param: the field that is wrong.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.status = param, status


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one client may take.

    Attributes:
        body_bytes: of a request.
        body_s: seconds that a client may take to send it.
        answer_s: seconds that an answer may take.
        new_tokens: of an answer.
        choices: answers to one request, prompts times `n`.
    """

    body_bytes: int = 1 << 20
    body_s: float = 20.0
    answer_s: float = 600.0
    new_tokens: int = 4096
    choices: int = 16


@dataclasses.dataclass(frozen=True)
class Asked:
    """Attributes:
        prompts: token ids, one list each.
        n: answers to each.
        logprobs: see `Request`.
    """

    chat: bool
    prompts: list[list[int]]
    max_tokens: int
    n: int
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    logprobs: int | None
    priority: int
    ignore_eos: bool = False

    def sampling_of(self, choice: int) -> Sampling:
        """Each answer draws numbers of its own; the first those of the seed."""
        seed = (self.sampling.seed + choice) % 2**31
        return dataclasses.replace(self.sampling, seed=seed)


def read(body, chat: bool, model, name: str, context: int, limits: Limits) -> Asked:
    """Checks the JSON value of a request to `/v1/completions` or `/v1/chat/completions`.

    Args:
        name: what the served model is called.
        context: tokens that a prompt and its answer may have together.
    """
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.")
    if body.get("model", name) != name:
        raise BadRequest(f"The model {str(body['model'])[:80]!r} is not served here; {name!r} is.",
                         "model", 404)
    for field in _UNSUPPORTED:
        if body.get(field) and body[field] != _HARMLESS.get(field):
            raise BadRequest(f"{field} is not supported.", field)
    n = _integer(body, "n", 1, 1, limits.choices)
    if _integer(body, "best_of", n, 1, limits.choices) != n:
        raise BadRequest("best_of must be n.", "best_of")
    prompts = [_messages(body, model)] if chat else _prompts(body, model)
    if len(prompts) * n > limits.choices:
        raise BadRequest(f"A request gets at most {limits.choices} answers.", "n")
    room = context - max(map(len, prompts))
    if room < 1:
        raise BadRequest(f"The prompt has {context - room} tokens; with its answer it must fit "
                         f"into {context}.", "messages" if chat else "prompt")
    given = body.get("max_completion_tokens") is not None
    field = "max_completion_tokens" if given else "max_tokens"
    most = min(limits.new_tokens, room)
    usual = most if chat else min(most, _COMPLETION_TOKENS)
    return Asked(chat, prompts, _integer(body, field, usual, 1, most), n, _sampling(body),
                 _stops(body), _flag(body, "stream"), _include_usage(body),
                 _logprobs(body, chat), _integer(body, "priority", 0, -1000, 1000),
                 _flag(body, "ignore_eos"))


def _prompts(body: dict, model) -> list[list[int]]:
    """A text, several, token ids, or several lists of them."""
    prompt = body.get("prompt")
    if isinstance(prompt, str) or _ids(prompt):
        prompt = [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise BadRequest("prompt must be a text, a list of token ids, or a list of either.",
                         "prompt")
    return [_encoded(p, model) if isinstance(p, str) else _checked(p, model) for p in prompt]


def _ids(value) -> bool:
    return isinstance(value, list) and bool(value) and all(type(i) is int for i in value)


def _checked(ids, model) -> list[int]:
    if not _ids(ids):
        raise BadRequest("prompt must be a text, a list of token ids, or a list of either.",
                         "prompt")
    if not all(0 <= i < model.vocabulary_size for i in ids):
        raise BadRequest(f"Token ids must lie in [0, {model.vocabulary_size}).", "prompt")
    return ids


def _encoded(text: str, model) -> list[int]:
    if model.tokenizer is None:
        raise BadRequest("This model has no tokenizer: send token ids.", "prompt")
    ids = model.tokenizer.encode(text)
    if not ids:
        raise BadRequest("The prompt is empty.", "prompt")
    return ids


def _messages(body: dict, model) -> list[int]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list with at least one message.", "messages")
    if model.tokenizer is None:
        raise BadRequest("This model has no tokenizer: use /v1/completions with token ids.",
                         "messages", 404)
    read = [_message(m) for m in messages]
    if not model.tokenizer.chat_template:
        # A plain model continues what was said.
        return _encoded("\n".join(m["content"] for m in read), model)
    try:
        return _encoded(model.tokenizer.chat(read), model)
    except TfspeedError as error:
        raise BadRequest(str(error), "messages") from error


def _message(message) -> dict:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise BadRequest(f"A message needs a role, one of {', '.join(_ROLES)}.", "messages")
    content = message.get("content")
    if isinstance(content, list):
        if not all(isinstance(p, dict) and p.get("type") == "text"
                   and isinstance(p.get("text"), str) for p in content):
            raise BadRequest("The parts of a message must be texts.", "messages")
        content = "".join(p["text"] for p in content)
    if not isinstance(content, str):
        raise BadRequest("A message needs a text as its content.", "messages")
    return {"role": message["role"], "content": content}


def _sampling(body: dict) -> Sampling:
    values = {"temperature": _number(body, "temperature", 1.0),
              "top_p": _number(body, "top_p", 1.0),
              "top_k": max(0, _integer(body, "top_k", 0, -1, 2**31 - 1)),
              "seed": _integer(body, "seed", secrets.randbelow(2**31), -2**63, 2**64) % 2**31}
    try:
        return Sampling(**values)
    except TfspeedError as error:
        raise BadRequest(str(error), str(error).split(" ", 1)[0]) from error


def _stops(body: dict) -> tuple[str, ...]:
    stop = body.get("stop")
    stop = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if (not isinstance(stop, list) or len(stop) > _MAX_STOPS
            or not all(isinstance(s, str) and 0 < len(s) <= _MAX_STOP_CHARS for s in stop)):
        raise BadRequest(f"stop must be a text or up to {_MAX_STOPS} of them, none empty.", "stop")
    return tuple(stop)


def _logprobs(body: dict, chat: bool) -> int | None:
    if not chat:
        if body.get("logprobs") is None or body["logprobs"] is False:
            return None
        return _integer(body, "logprobs", 0, 0, 20)
    top = _integer(body, "top_logprobs", 0, 0, 20)
    if not _flag(body, "logprobs"):
        if top:
            raise BadRequest("top_logprobs needs logprobs=true.", "top_logprobs")
        return None
    return top


def _include_usage(body: dict) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise BadRequest("stream_options must be an object.", "stream_options")
    return _flag(options, "include_usage")


def _flag(body: dict, field: str) -> bool:
    value = body.get(field)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"{field} must be true or false.", field)
    return bool(value)


def _integer(body: dict, field: str, default: int, least: int, most: int) -> int:
    value = body.get(field)
    if value is None:
        return default
    if type(value) is not int or not least <= value <= most:
        raise BadRequest(f"{field} must be an integer in [{least}, {most}].", field)
    return value


def _number(body: dict, field: str, default: float) -> float:
    value = body.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e6:
        raise BadRequest(f"{field} must be a number of at least 0.", field)
    return float(value)
