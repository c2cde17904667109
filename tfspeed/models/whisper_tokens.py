"""Whisper's special tokens: the prompt that asks for a language and a task, and what a text never
holds. Source: openai/whisper, whisper/tokenizer.py."""

import dataclasses
from pathlib import Path

from tfspeed.errors import TfspeedError
from tfspeed.models.tokenizer import Tokenizer, read_json, tokenizer_from_folder

TASKS = ("transcribe", "translate")


@dataclasses.dataclass(frozen=True)
class WhisperTokens:
    """Ids; `languages` by code (`en`); none in models that know English only."""

    start: int
    end: int
    no_timestamps: int
    no_speech: int | None
    tasks: dict[str, int]
    languages: dict[str, int]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "WhisperTokens":
        """Raises:
            TfspeedError: the tokenizer is not Whisper's.
        """
        vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)

        def find(*names):
            return next((vocabulary[n] for n in names if n in vocabulary), None)

        start, end = find("<|startoftranscript|>"), find("<|endoftext|>")
        quiet = find("<|notimestamps|>")
        if None in (start, end, quiet):
            raise TfspeedError("This tokenizer has none of Whisper's special tokens.",
                               hint="Speech needs a Whisper model: --model=whisper-base.")
        # Languages stand between the start and the tasks.
        tasks = {name: vocabulary[f"<|{name}|>"] for name in TASKS if f"<|{name}|>" in vocabulary}
        first_task = min(tasks.values(), default=start)
        languages = {token[2:-2]: i for token, i in vocabulary.items()
                     if start < i < first_task and token.startswith("<|")}
        return cls(start, end, quiet, find("<|nospeech|>", "<|nocaptions|>"), tasks, languages)

    def prompt(self, language: str, task: str) -> list[int]:
        """What generation goes on from: no timestamps.

        Raises:
            TfspeedError: the model knows no such language or task.
        """
        if task not in TASKS:
            raise TfspeedError(f"A task is one of {', '.join(TASKS)}.", task=task)
        if not self.languages:
            if language != "en" or task != "transcribe":
                raise TfspeedError("This model transcribes English only.", language=language,
                                   task=task)
            return [self.start, self.no_timestamps]
        if language not in self.languages:
            raise TfspeedError("The model knows no language of this code.", language=language,
                               hint=f"Known: {', '.join(sorted(self.languages))}; or auto.")
        return [self.start, self.languages[language], self.tasks[task], self.no_timestamps]


def whisper_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, whose end is Whisper's."""
    found = tokenizer_from_folder(folder)
    if found is None:
        raise TfspeedError("A Whisper folder needs its tokenizer.json.", folder=str(folder))
    tokens = WhisperTokens.of(found)
    return Tokenizer(found.backend, bos_id=tokens.start, eos_ids=[tokens.end])


def suppressed_of(folder: Path, tokenizer: Tokenizer) -> dict:
    """What generation never gives, and never begins with, by the names of
    `EncoderDecoderConfig`: signs of no speech that the folder's config lists, all special tokens
    but the end, timestamps."""
    config = read_json(folder / "config.json") | read_json(folder / "generation_config.json")
    tokens, size = WhisperTokens.of(tokenizer), tokenizer.vocabulary_size

    def listed(*names):
        ids = next((config[n] for n in names if isinstance(config.get(n), list)), [])
        return {i for i in ids if type(i) is int and 0 <= i < size}

    never = listed("suppress_ids", "suppress_tokens") | set(range(tokens.start, size))
    first = listed("suppress_ids_begin", "begin_suppress_tokens")
    return {"suppressed": tuple(sorted(never - {tokens.end})),
            "suppressed_first": tuple(sorted(first))}
