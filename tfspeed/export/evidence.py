"""What an artifact does, measured by running it: its quality, and what it answers to probes.

All that is needed to measure it again without the model goes into the record: the tokens that it
was scored on, and which token the float32 reference held likeliest after each.
"""

from collections.abc import Callable

import numpy as np

from tfspeed.measure import quality
from tfspeed.models.language_model import LanguageModel

_PROBES = ("The capital of France is", "What is the capital of France?")
_NEW_TOKENS = 16
_RANDOM = 8  # ids of a prompt where there is no tokenizer


class _Watched:
    """A score function that remembers the likeliest token after each position."""

    def __init__(self, score: quality.Score):
        self._score, self.likeliest = score, []

    def __call__(self, tokens):
        logits = self._score(tokens)
        # The last one predicts a token outside of the window, and is not counted.
        self.likeliest.append(np.asarray(logits[0, :-1]).argmax(-1))
        return logits


def probes(model: LanguageModel, context: int) -> list[dict]:
    """`prompt` as text and `tokens`, shortened so that there is room for an answer."""
    room = context - answer_length(context)
    tokenizer = model.tokenizer
    if tokenizer is None:
        ids = np.random.default_rng(0).integers(0, model.vocabulary_size, _RANDOM).tolist()
        return [{"prompt": None, "tokens": _spelled(ids[:room])}]
    found = [{"prompt": _PROBES[0], "tokens": tokenizer.encode(_PROBES[0])}]
    if tokenizer.chat_template:
        text = tokenizer.chat([{"role": "user", "content": _PROBES[1]}])
        found.append({"prompt": _PROBES[1], "tokens": tokenizer.encode(text)})
    return [probe | {"tokens": _spelled(probe["tokens"][:room])} for probe in found]


def answer_length(context: int) -> int:
    return min(_NEW_TOKENS, max(1, context // 2))


def measure(runner, reference: quality.Score, windows: np.ndarray, asked: list[dict],
            tokenizer, count: int, progress: Callable[[], None]) -> dict:
    """Runs an artifact beside the float32 reference.

    Args:
        runner: see `runners`.
        reference: int32 `[1, length]` → float32 logits `[1, length, vocabulary]`.
        windows: int32 `[n, length]`.
        asked: of `probes`.
        count: tokens in each answer.

    Returns:
        `quality`, `probes` and `evaluation`, ready for JSON.
    """
    watched = _Watched(reference)
    found = quality.compare(watched, runner.score, windows, progress)
    answers = []
    for probe in asked:
        answer = runner.greedy(_numbers(probe["tokens"]), count)
        text = None
        if tokenizer is not None:
            ends = [i for i, token in enumerate(answer) if token in tokenizer.eos_ids]
            text = tokenizer.decode(answer[:ends[0]] if ends else answer)
        answers.append(probe | {"answer": _spelled(answer), "text": text})
        progress()
    return {"quality": found, "probes": answers, "evaluation": {
        "windows": [_spelled(row) for row in windows],
        "reference_top1": [_spelled(row) for row in watched.likeliest]}}


def measure_again(runner, record: dict, progress: Callable[[], None]) -> dict:
    """`quality` and `probes` of an artifact, out of its record alone.

    The KL divergence is not among them: it takes the reference's whole distributions.
    """
    windows = np.asarray([_numbers(row) for row in record["evaluation"]["windows"]], np.int32)
    reference = np.asarray([_numbers(row) for row in record["evaluation"]["reference_top1"]])
    watched = _Watched(runner.score)
    found = quality.compare(watched, watched, windows, progress)
    again = {"perplexity": found["perplexity"],
             "top1_agreement": float((np.asarray(watched.likeliest) == reference).mean()),
             "evaluated_tokens": found["evaluated_tokens"]}
    baseline = record["quality"].get("baseline_perplexity")
    if baseline is not None:  # no tokenizer: no perplexity
        again["perplexity_delta"] = again["perplexity"] / baseline - 1.0
    answers = []
    for probe in record["probes"]:
        count = len(_numbers(probe["answer"]))
        answers.append(_spelled(runner.greedy(_numbers(probe["tokens"]), count)))
        progress()
    return {"quality": again, "answers": answers}


def _spelled(tokens) -> str:
    """Tokens on one line of JSON."""
    return " ".join(str(int(token)) for token in tokens)


def _numbers(spelled: str) -> list[int]:
    return [int(token) for token in spelled.split()]
