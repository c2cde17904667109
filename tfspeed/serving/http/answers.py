"""What a client gets: OpenAI's objects, whole or in pieces."""

import json
import secrets
import time

from tfspeed.serving.http.asked import Asked
from tfspeed.serving.request import Request, Token, Update

_REASONS = {"stop": "stop", "length": "length", "timeout": "length", "cancelled": "stop"}


class Answers:
    """Makes the objects of one request.

    Args:
        name: of the model.
        tokenizer: turns tokens into texts for log-probabilities; None where there is none.
        requests: one for each choice.
    """

    def __init__(self, asked: Asked, name: str, tokenizer, requests: list[Request]):
        self._asked, self._tokenizer, self._requests = asked, tokenizer, requests
        kind = "chat.completion" if asked.chat else "text_completion"
        self._head = {"id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{secrets.token_hex(12)}",
                      "object": kind, "created": int(time.time()), "model": name}
        self._begun: set[int] = set()
        self._offsets = [0] * len(requests)

    def whole(self, updates: list[list[Update]]) -> dict:
        """The answer that is given at once, of each choice's updates."""
        choices = []
        for index, parts in enumerate(updates):
            text = "".join(u.text for u in parts)
            tokens = [t for u in parts for t in u.tokens]
            choices.append({"index": index, **self._content("message", text),
                            "logprobs": self._logprobs(index, tokens, text),
                            "finish_reason": _REASONS[parts[-1].reason]})
        return {**self._head, "choices": choices, "usage": self.usage()}

    def piece(self, index: int, update: Update) -> str:
        """An event of a stream."""
        choice = {"index": index, **self._content("delta", update.text),
                  "logprobs": self._logprobs(index, update.tokens, update.text),
                  "finish_reason": _REASONS.get(update.reason)}
        if self._asked.chat:
            if index not in self._begun:
                choice["delta"] = {"role": "assistant", **choice["delta"]}
            elif not update.text:
                choice["delta"] = {}
            self._begun.add(index)
        return self._event([choice])

    def last(self) -> str:
        """The events that end a stream."""
        usage = ""
        if self._asked.include_usage:
            usage = self._event([], usage=self.usage())
        return usage + "data: [DONE]\n\n"

    def usage(self) -> dict:
        prompts = self._requests[::self._asked.n]
        prompt = sum(len(r.prompt) for r in prompts)
        new = sum(r.generated for r in self._requests)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new,
                "prompt_tokens_details": {"cached_tokens": sum(r.reused for r in prompts)}}

    def _event(self, choices: list, **more) -> str:
        head = self._head
        if self._asked.chat:
            head = {**head, "object": "chat.completion.chunk"}
        # ASCII: some clients (httpx) end a line at U+0085 and U+2028 too, in mid-text.
        value = json.dumps({**head, "choices": choices, **more}, separators=(",", ":"))
        return f"data: {value}\n\n"

    def _content(self, key: str, text: str) -> dict:
        if not self._asked.chat:
            return {"text": text}
        return {key: {"role": "assistant", "content": text} if key == "message"
                else {"content": text}}

    def _logprobs(self, index: int, tokens: list[Token] | tuple, text: str) -> dict | None:
        if self._asked.logprobs is None or not tokens:
            return None
        if self._asked.chat:
            return {"content": [{**self._named(t.token, t.logprob), "top_logprobs": [
                self._named(*top) for top in t.top]} for t in tokens]}
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(self._text(token.token))
        return {"tokens": [self._text(t.token) for t in tokens],
                "token_logprobs": [t.logprob for t in tokens],
                "top_logprobs": [{self._text(i): p for i, p in t.top} for t in tokens],
                "text_offset": offsets}

    def _named(self, token: int, logprob: float) -> dict:
        text = self._text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def _text(self, token: int) -> str:
        if self._tokenizer is None:
            return f"token_id:{token}"
        text = self._tokenizer.backend.decode([token], skip_special_tokens=False)
        if "\ufffd" in text:  # half a character: by its name, or several would be called alike
            return self._tokenizer.backend.id_to_token(token) or text
        return text


def error(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
