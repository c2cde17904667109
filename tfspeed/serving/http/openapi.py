"""The server's own description, OpenAPI 3.1."""

import tfspeed
from tfspeed.serving.http.asked import Limits


def describe(name: str, limits: Limits) -> dict:
    """Args:
        name: of the model.
    """
    shared = {
        "model": {"type": "string", "enum": [name]},
        "max_tokens": _integer(1, limits.new_tokens, "tokens to add at most"),
        "n": _integer(1, limits.choices, "answers to each prompt"),
        "temperature": _number(0, None, "0 is greedy"),
        "top_p": {**_number(None, 1, "sample among the likeliest tokens that make up p"),
                  "exclusiveMinimum": 0},
        "top_k": _integer(-1, 2**31 - 1, "sample among the k likeliest tokens; 0, -1: all"),
        "seed": _integer(-2**63, 2**64, "the same seed gives the same tokens"),
        "stop": {"anyOf": [{"type": "null"}, _text(1), _list(_text(1), 0, 16)]},
        "stream": {"type": ["boolean", "null"]},
        "stream_options": {"type": ["object", "null"], "properties": {
            "include_usage": {"type": ["boolean", "null"]}}},
        "ignore_eos": {"type": ["boolean", "null"]},
        "priority": _integer(-1000, 1000, "smaller goes first"),
    }
    token = {"type": "integer", "minimum": 0}
    prompt = {"anyOf": [_text(1), _list(token, 1), _list(_text(1), 1), _list(_list(token, 1), 1)]}
    message = {"type": "object", "required": ["role", "content"], "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [{"type": "string"}, _list({
            "type": "object", "required": ["type", "text"],
            "properties": {"type": {"const": "text"}, "text": {"type": "string"}}}, 0)]}}}
    completion = _object(["prompt"], {**shared, "prompt": prompt,
                                      "logprobs": _integer(0, 20, "likeliest tokens to tell")})
    chat = _object(["messages"], {
        **shared, "messages": _list(message, 1),
        "max_completion_tokens": shared["max_tokens"],
        "logprobs": {"type": ["boolean", "null"]},
        "top_logprobs": _integer(0, 20, "likeliest tokens to tell; needs logprobs")})
    return {
        "openapi": "3.1.0",
        "info": {"title": "tfspeed", "version": tfspeed.__version__,
                 "description": "OpenAI's completions and chat over a Keras/TensorFlow model."},
        "paths": {
            "/v1/completions": {"post": _run("Continues texts.", completion)},
            "/v1/chat/completions": {"post": _run("Answers a conversation.", chat)},
            "/v1/models": {"get": _get("The model that is served.")},
            "/v1/models/{name}": {"get": {
                **_get("The same, by its name.", 404),
                "parameters": [{"name": "name", "in": "path", "required": True,
                                "schema": {"type": "string"}}]}},
            "/healthz": {"get": _get("Whether the server takes requests.", 503)},
            "/metrics": {"get": _get("Prometheus' text format.", kind="text/plain")},
            "/openapi.json": {"get": _get("This description.")},
            "/": {"get": _get("A page to chat on.", kind="text/html")}},
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _object(["error"], {"error": _object(
                ["message", "type"], {
                    "message": {"type": "string"}, "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]}})})}},
    }


def _run(summary: str, body: dict) -> dict:
    failures = {400: "The request is wrong.", 401: "The API key is missing or wrong.",
                403: "The Host is none of this machine's.", 404: "The model is not served here.",
                408: "The request took too long to arrive.", 413: "The request is too large.",
                415: "The Content-Type is not application/json.",
                429: "Too many are waiting; Retry-After says when to come back.",
                500: "The server failed on this request."}
    answers = {str(code): _failure(words) for code, words in failures.items()}
    answers["429"]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    answers["200"] = {"description": "The answer; a stream of events where stream is true.",
                      "content": {"application/json": {"schema": {"type": "object"}},
                                  "text/event-stream": {}}}
    return {"summary": summary, "security": [{}, {"key": []}], "responses": answers,
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}


def _get(summary: str, *failures: int, kind: str = "application/json") -> dict:
    schema = {"type": "object" if kind == "application/json" else "string"}
    answers = {str(code): {"description": "See the body."} for code in (401, 403, *failures)}
    answers["200"] = {"description": summary, "content": {kind: {"schema": schema}}}
    return {"summary": summary, "responses": answers}


def _failure(words: str) -> dict:
    return {"description": words, "content": {"application/json": {
        "schema": {"$ref": "#/components/schemas/Error"}}}}


def _object(required: list[str], properties: dict) -> dict:
    return {"type": "object", "required": required, "properties": properties}


def _integer(least: int, most: int, words: str) -> dict:
    return {"type": ["integer", "null"], "minimum": least, "maximum": most, "description": words}


def _number(least, most, words: str) -> dict:
    bounds = {"minimum": least, "maximum": most}
    return {"type": ["number", "null"], "description": words,
            **{k: v for k, v in bounds.items() if v is not None}}


def _text(least: int) -> dict:
    return {"type": "string", "minLength": least}


def _list(items: dict, least: int, most: int | None = None) -> dict:
    return {"type": "array", "items": items, "minItems": least,
            **({} if most is None else {"maxItems": most})}
