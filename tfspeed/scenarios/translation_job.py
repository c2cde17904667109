"""The work of the translation scenario."""

import time

from tfspeed.audio import clips
from tfspeed.audio.wav import Wav
from tfspeed.engines.base import FINISHED, Engine
from tfspeed.errors import TfspeedError
from tfspeed.measure.progress import Progress
from tfspeed.models.language_model import check_fits
from tfspeed.scenarios import job, pairs, speech_job

_POOR, _FAIR = 30, 50  # chrF under which a translation is not, or hardly, of use


def speech(flags) -> None:
    """Speech in any language to English text, by Whisper's own task."""
    paths = clips.find(flags.audio)
    said = clips.transcripts(flags.transcripts) if flags.transcripts else {}
    if not flags["model"].present:
        flags.model = "whisper-base"
    flags.task = "translate"
    bar = Progress()
    made, row = speech_job.transcriber(flags, bar)
    for path in paths:
        with Wav(path):
            pass
    speech_job.warm(made.window)
    texts, tokens, work = [], 0, 0.0
    with bar.task("translating", len(paths)) as advance:
        for path in paths:
            with Wav(path) as wav:
                windows = list(made.long(wav.blocks()))
            known = clips.transcript(said, path)
            texts.append({"name": path.stem,
                          "translation": " ".join(w.text for w in windows if w.text)}
                         | ({} if known is None else {"reference": known}))
            tokens += sum(len(w.tokens) for w in windows)
            work += sum(w.encode_s + w.decode_s for w in windows)
            print(f"{path.name}: {texts[-1]['translation']}", flush=True)
            advance()
    _finish(flags, row | {"scenario": "translation"}, texts, tokens, work, bar)


def texts(flags) -> None:
    """Texts by an encoder–decoder, or by a model that follows instructions."""
    chosen = pairs.read(flags.pairs, flags.sentences)
    bar = Progress()
    engine, row = job.prepared(flags, bar)
    _check(engine.model)
    made, tokens, work = [], 0, 0.0
    translate = Translator(engine, flags)
    translate(chosen[0][0])  # compiles
    with bar.task("translating", len(chosen)) as advance:
        for source, reference in chosen:
            start = time.perf_counter()
            text, count = translate(source)
            work += time.perf_counter() - start
            tokens += count
            made.append({"source": source, "translation": text, "reference": reference})
            print(text, flush=True)
            advance()
    languages = {"source_language": flags.source_language, "target_language": flags.target_language}
    _finish(flags, {"scenario": "translation", **row, **languages}, made, tokens, work, bar)


def _check(model) -> None:
    if model.tokenizer is None:
        raise TfspeedError("Translation needs a tokenizer, and this model has none.",
                           model=model.name)
    if model.reads_source and model.config.source == "audio":
        raise TfspeedError("This model translates speech: give it --audio.", model=model.name)


class Translator:
    """One text at a time: an instruct model is asked in words, T5 with the prefix that it was
    trained with, others read the text as it is."""

    def __init__(self, engine: Engine, flags):
        self.engine, self.flags = engine, flags
        self.tokenizer = engine.model.tokenizer

    def __call__(self, text: str) -> tuple[str, int]:
        """The translation, and how many tokens it took."""
        model, flags = self.engine.model, self.flags
        if model.reads_source:
            family = model.config.family
            asked = (f"translate {flags.source_language} to {flags.target_language}: {text}"
                     if family == "t5" else text)
            source = [*self.tokenizer.encode(asked), *self.tokenizer.eos_ids[:1]]
            encoded = self.engine.encode([source])
            # T5 begins with padding, BART with its end token.
            prompt = [0 if family == "t5" or not self.tokenizer.eos_ids
                      else self.tokenizer.eos_ids[0]]
        else:
            asked = (f"Translate this from {flags.source_language} to {flags.target_language}. "
                     f"Answer with the translation only.\n\n{text}")
            encoded, prompt = None, self.tokenizer.encode(
                self.tokenizer.chat([{"role": "user", "content": asked}])
                if self.tokenizer.chat_template else f"{asked}\n\n{flags.target_language}:")
        room = min(flags.new_tokens, model.context_length - len(prompt))
        check_fits(model, len(prompt), max(1, room))
        made = [int(row[0]) for row in self.engine.generate(
            [prompt], room, stop_tokens=self.tokenizer.eos_ids, encoded=encoded)]
        kept = [t for t in made if t != FINISHED and t not in self.tokenizer.eos_ids]
        return " ".join(self.tokenizer.decode(kept).split()), len(made)


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
