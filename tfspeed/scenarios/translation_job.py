"""The work of the translation scenario."""

import time
from itertools import islice

import numpy as np

from tfspeed.audio import clips
from tfspeed.engines.base import FINISHED, Engine
from tfspeed.errors import TfspeedError
from tfspeed.measure.progress import Progress
from tfspeed.models.language_model import check_fits
from tfspeed.scenarios import job, pairs, speech_job

_POOR, _FAIR = 30, 50  # chrF under which a translation is not, or hardly, of use


def speech(flags) -> int | None:
    """Speech in any language to English text, by Whisper's own task."""
    paths = clips.find(flags.audio)
    said = clips.transcripts(flags.transcripts) if flags.transcripts else {}
    if not flags["model"].present:
        flags.model = "whisper-base"
    flags.task = "translate"
    speech_job.check_readable(paths)
    return job.run(flags, lambda setup: _speech(flags, setup, paths, said))


def _speech(flags, setup: job.Setup, paths, said: dict[str, str]) -> None:
    bar = Progress()
    made, row = speech_job.transcriber(flags, setup, paths, bar)
    speech_job.warm_all(made)
    texts, tokens, work = [], 0, 0.0
    with bar.task("translating", len(paths)) as advance:
        for group in speech_job.groups(made, paths):
            for path, windows in zip(group, speech_job.read(made, group), strict=True):
                known = clips.transcript(said, path)
                texts.append({"name": path.stem,
                              "translation": " ".join(w.text for w in windows if w.text)}
                             | ({} if known is None else {"reference": known}))
                tokens += sum(len(w.tokens) for w in windows)
                work += sum(w.encode_s + w.decode_s for w in windows)
                print(f"{path.name}: {texts[-1]['translation']}", flush=True)
                advance()
    _finish(flags, row | {"scenario": "translation"}, texts, tokens, work, bar)


def texts(flags) -> int | None:
    """Texts by an encoder–decoder, or by a model that follows instructions."""
    chosen = pairs.read(flags.pairs, flags.sentences)
    return job.run(flags, lambda setup: _texts(flags, setup, chosen))


def _texts(flags, setup: job.Setup, chosen: list[tuple[str, str]]) -> None:
    bar = Progress()
    engine, row = job.prepared(flags, setup, bar)
    _check(engine.model)
    batch = flags.batch or engine.row_shares
    made, tokens, work = [], 0, 0.0
    translate, waiting = Translator(engine, flags), iter(chosen)
    for size in {min(batch, len(chosen)), len(chosen) % batch} - {0}:
        translate([source for source, _ in chosen[:size]])  # compiles
    with bar.task("translating", len(chosen)) as advance:
        while some := list(islice(waiting, batch)):
            start = time.perf_counter()
            found = translate([source for source, _ in some])
            work += time.perf_counter() - start
            for (source, reference), (text, count) in zip(some, found, strict=True):
                tokens += count
                made.append({"source": source, "translation": text, "reference": reference})
                print(text, flush=True)
                advance()
    languages = {"source_language": flags.source_language, "target_language": flags.target_language}
    _finish(flags, {"scenario": "translation", **row, "batch": batch, **languages}, made, tokens,
            work, bar)


def _check(model) -> None:
    if model.tokenizer is None:
        raise TfspeedError("Translation needs a tokenizer, and this model has none.",
                           model=model.name)
    if model.reads_source and model.config.source == "audio":
        raise TfspeedError("This model translates speech: give it --audio.", model=model.name)


class Translator:
    """Some texts at once: an instruct model is asked in words, T5 with the prefix that it was
    trained with, others read the text as it is."""

    def __init__(self, engine: Engine, flags):
        self.engine, self.flags = engine, flags
        self.tokenizer = engine.model.tokenizer

    def __call__(self, texts: list[str]) -> list[tuple[str, int]]:
        """The translations, and how many tokens each took."""
        model, eos = self.engine.model, self.tokenizer.eos_ids
        if model.reads_source:
            encoded = self.engine.encode([self._source(text) for text in texts])
            # T5 begins with padding, BART with its end token.
            begin = 0 if model.config.family == "t5" or not eos else eos[0]
            prompts = [[begin]] * len(texts)
        else:
            encoded, prompts = None, [self._asked(text) for text in texts]
        longest = max(map(len, prompts))
        room = min(self.flags.new_tokens, model.context_length - longest)
        check_fits(model, longest, max(1, room))
        rows = np.stack(list(self.engine.generate(prompts, room, stop_tokens=eos,
                                                  encoded=encoded)), 1)
        made = [[int(t) for t in row if t != FINISHED] for row in rows]
        return [(" ".join(self.tokenizer.decode([t for t in row if t not in eos]).split()),
                 len(row)) for row in made]

    def _source(self, text: str) -> list[int]:
        flags = self.flags
        if self.engine.model.config.family == "t5":
            text = f"translate {flags.source_language} to {flags.target_language}: {text}"
        return [*self.tokenizer.encode(text), *self.tokenizer.eos_ids[:1]]

    def _asked(self, text: str) -> list[int]:
        flags = self.flags
        asked = (f"Translate this from {flags.source_language} to {flags.target_language}. "
                 f"Answer with the translation only.\n\n{text}")
        return self.tokenizer.encode(
            self.tokenizer.chat([{"role": "user", "content": asked}])
            if self.tokenizer.chat_template else f"{asked}\n\n{flags.target_language}:")


def _finish(flags, row: dict, made: list[dict], tokens: int, work: float, bar: Progress) -> None:
    row |= {"texts": made, "sentences_per_s": len(made) / work if work else None,
            "output_tokens_per_s": tokens / work if work else None}
    known = [text for text in made if "reference" in text]
    if known:
        row |= pairs.scores([t["translation"] for t in known], [t["reference"] for t in known])
        row["verdict"] = verdict(row["model"], row["chrf"], len(known))
    job.write(flags, [row], bar)
    for name in ("chrf", "bleu", "sentences_per_s", "output_tokens_per_s"):
        if row.get(name) is not None:
            bar.say(f"{name:>20}  {row[name]:.2f}")
    if known:
        bar.say(row["verdict"])


def verdict(model: str, chrf: float, count: int) -> str:
    """What a reader should think of the translations, in one sentence."""
    worth = ("no usable translation" if chrf < _POOR else
             "the gist, with many errors" if chrf < _FAIR else "a usable draft")
    return f"{model} gives {worth}: chrF {chrf:.1f} over {count} texts."
