"""OpenAI's own client against the server."""

import pytest

from tests.serving.serving import serving

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def client():
    with serving(key="secret") as (port, _):
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="secret",
                            max_retries=0)


MESSAGES = [{"role": "user", "content": "Hi"}]


def test_models(client):
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "tfspeed"


def test_chat(client):
    kwargs = {"model": "tiny", "messages": MESSAGES, "max_tokens": 20, "temperature": 0,
              "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**kwargs)
    text = whole.choices[0].message.content
    assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.content)
    pieces = list(client.chat.completions.create(**kwargs, stream=True, stream_options={
        "include_usage": True}))
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == text
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens
    with client.chat.completions.stream(**kwargs) as stream:
        assert "".join(e.delta for e in stream if e.type == "content.delta") == text


def test_completions(client):
    kwargs = {"model": "tiny", "prompt": "Hello", "max_tokens": 8, "temperature": 1, "seed": 3}
    whole = client.completions.create(**kwargs)
    pieces = list(client.completions.create(**kwargs, stream=True))
    assert "".join(p.choices[0].text for p in pieces) == whole.choices[0].text
    assert len(client.completions.create(**kwargs, n=3).choices) == 3


def test_errors(client):
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="tiny", prompt="x", temperature=-1)
    with pytest.raises(openai.NotFoundError, match="not served"):
        client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_a_stream_that_is_left_early(client):
    stream = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    next(iter(stream))
    stream.close()
    assert client.models.list().data
