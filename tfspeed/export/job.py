"""The job behind `scripts/export.py`: load, change, write, run what was written, record it."""

import contextlib
import errno
import gc
import os
import time
from pathlib import Path

import tensorflow as tf

from tfspeed import cli, engines
from tfspeed.costs import export_memory
from tfspeed.errors import TfspeedError
from tfspeed.export import (
    FORMATS,
    evidence,
    files,
    litertlm,
    manifest,
    recurrent,
    saved_model,
    seq2seq,
    stored,
    tflite,
    verify,
)
from tfspeed.litert.formats import Formats
from tfspeed.litert.packed_cache import packed
from tfspeed.main_job import read_calibration, read_text
from tfspeed.measure.experiment import text_windows
from tfspeed.measure.memory import PeakMemory
from tfspeed.measure.progress import Progress
from tfspeed.memory import give_back
from tfspeed.models.decoder import Decoder
from tfspeed.models.encoder_decoder import EncoderDecoder
from tfspeed.models.keras_file import save_keras
from tfspeed.models.language_model import LanguageModel
from tfspeed.models.load import load
from tfspeed.models.recurrent import Recurrent

_SUFFIX = {"tflite": ".tflite", "litertlm": ".litertlm", "saved_model": "", "keras": ".keras"}
_CONTEXT = 1024


def run(flags) -> int | None:
    """Does what the flags of `scripts/export.py` say; returns an exit code."""
    if flags.verify is not None:
        others = [name for name in ("format", "out", "weights", "context", "eval_text", "model",
                                    "strategy", "calibration") if flags[name].present]
        if others:
            raise TfspeedError("--verify takes no other flags.", given=others)
        return verify.run(flags.verify)
    # Everything that can be wrong is looked at before anything slow starts.
    if flags.format not in FORMATS:
        raise TfspeedError(f"--format must be one of {', '.join(FORMATS)}.", format=flags.format)
    if flags.out is None:
        raise TfspeedError("--out must name the folder that the artifact goes to.")
    stored.check(flags.format, flags.weights)
    if flags.context is not None and flags.context < 2:
        raise TfspeedError("--context must be at least 2 tokens.", context=flags.context)
    text, calibration = read_text(flags.eval_text), read_calibration(flags)
    strategy = cli.make_strategy(flags.strategy)
    out = Path(flags.out).expanduser()
    files.check_folder(out, "out")

    bar, start = Progress(), time.perf_counter()
    with PeakMemory() as peak:
        with bar.task(f"loading {flags.model}", None), strategy.scope():
            reference = load(flags.model)
            halves = flags.format == "saved_model" and flags.weights == "float16"
            model = strategy.apply(load(flags.model, "float16") if halves else reference,
                                   calibration)
        weights = stored.agreed(model, flags.format, flags.weights)
        path = export(model, reference, flags.format, weights, flags.context, out, text, bar,
                      strategy.label, strategy.report)
    said = export_memory.told(peak.peak_rss, model, reference, flags.format, weights)
    print(f"{time.perf_counter() - start:.0f} s, {said}; to check it: python scripts/export.py "
          f"--verify={path}")
    return None


def export(model: LanguageModel, reference: LanguageModel, form: str, weights: str,
           context: int | None, out: Path, text: str, bar: Progress, strategy: str = "baseline",
           report=lambda: []) -> Path:
    """Writes one artifact and its manifest into the folder `out`; returns the artifact's path.

    Args:
        reference: the float32 model that quality is measured against.
        form: of `FORMATS`.
        weights: see `tfspeed.litert.formats.Formats`.
        context: tokens that a text may have; None for 1024, or less where the model has less.
        report: says, after the fact, what the strategy did.
    """
    context = fitted(model, context)
    seq2seq.check(model, form)
    if model.placement.exchanges:
        raise TfspeedError("A file holds a whole model, and the weights of this one are spread "
                           "over several devices.", devices=list(model.placement.devices),
                           hint="Leave tensor_parallel out.")
    # Keras quantizes layers in place: our models' `from_config` would make them as they were.
    ours = isinstance(model.keras_model, Decoder | EncoderDecoder | Recurrent)
    if form == "keras" and ours and any(getattr(layer, "quantization_mode", None)
                                        for layer in model.keras_model._flatten_layers()):
        raise TfspeedError("A .keras file of layers that Keras quantized cannot be loaded again.",
                           strategy=strategy, hint="Use --strategy=quantize, which packs them.")
    windows, note = text_windows(reference, text)
    if model.speculation is not None:
        raise TfspeedError("A file holds a model, and drafts are made while an engine generates.",
                           strategy=strategy, hint="Leave speculative out.")
    shown = "" if strategy == "baseline" else strategy
    target = out / (files.file_name(model.name, shown, weights) + _SUFFIX[form])
    try:
        if manifest.path_of(target).is_dir():  # the artifact would have its name already
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # The last to be opened gets its name first, and both are whole before either does.
        with (files.appearing(manifest.path_of(target)) as paper,
              files.appearing(target) as beside, saved_model.no_gradients()):
            write(beside, model, form, weights, context, bar)
            gc.collect()  # of traced functions, which hold one another
            give_back()
            found = prove(beside, model, reference, form, context, windows, bar)
            if note:  # random tokens have no perplexity worth the name
                for name in ("perplexity", "perplexity_delta", "baseline_perplexity",
                             "perplexity_delta_interval"):
                    found["quality"].pop(name)
            # The files have their last names before they are listed, and lie there last.
            listed = renamed(files.listing(beside), beside.name, target.name)
            record = {"model": model.name, "strategy": strategy, "format": form, "weights": weights,
                      "context": context, "parameters": model.parameters, "files": listed, **found,
                      "notes": [*model.notes, *report(), *([note] if note else []),
                                *seq2seq.notes(model),
                                *(litertlm.notes(model.config, context) if form == "litertlm"
                                  else [])]}
            manifest.write(paper, target.name, record)
    except (OSError, tf.errors.OpError) as error:
        raise TfspeedError("The artifact could not be written; nothing of it was left.",
                           path=str(target), cause=getattr(error, "strerror", None)
                           or str(error).splitlines()[0][:200]) from error
    summary(bar, target, record)
    give_back()
    return target


def fitted(model: LanguageModel, context: int | None) -> int:
    if context is not None and context > model.context_length:
        raise TfspeedError(f"--context must be at most that of {model.name}, "
                           f"{model.context_length} tokens.", context=context)
    return context or min(_CONTEXT, model.context_length)


def write(path: Path, model: LanguageModel, form: str, weights: str, context: int,
          bar: Progress) -> None:
    """Writes the artifact alone."""
    if form in ("saved_model", "keras"):
        files.check_room(path.parent, int(1.05 * model.weights_bytes))
        with bar.task(f"writing {path.parent}", None):
            if form == "keras":
                save_keras(model, path)
            else:
                saved_model.write(path, model, context)
        return
    if form == "tflite" and isinstance(model.keras_model, Recurrent):
        files.check_room(path.parent, int(1.25 * model.weights_bytes))
        with bar.task("writing the signatures", None):
            recurrent.write(path, model, weights, context)
        return
    if form == "tflite" and isinstance(model.keras_model, EncoderDecoder):
        seq2seq.write(path, model, weights, context)
        return
    if not isinstance(model.keras_model, Decoder):
        raise TfspeedError(f"Models of this kind are not exported as {form}.", model=model.name,
                           type=type(model.keras_model).__name__,
                           hint="Use --format=saved_model.")
    if form == "litertlm":
        litertlm.check(model)
    with bar.task("packing the weights, calibrated on text", None):
        matrices = packed(model, Formats(weights))
    copies = 2 if form == "litertlm" else 1  # the bundle is put together from a file
    files.check_room(path.parent, int(1.25 * copies * sum(w.nbytes for w in matrices.weights)))
    with bar.task("writing the signatures", None):
        if form == "litertlm":
            litertlm.write(path, model, matrices, context)
        else:
            tflite.write(path, model, matrices, context,
                         tflite.plan(model.keras_model.config, context))


def prove(path: Path, model: LanguageModel, reference: LanguageModel, form: str, context: int,
          windows, bar: Progress) -> dict:
    """Runs the artifact that was written: see `evidence.measure`."""
    asked = evidence.probes(model, context)
    with contextlib.ExitStack() as stack:
        runner = stack.enter_context(verify.opened(path, form))
        score = engines.create("graph", reference).score
        advance = stack.enter_context(bar.task("running the artifact beside the float32 model",
                                               len(windows) + len(asked)))
        return evidence.measure(runner, score, windows, asked, model.tokenizer,
                                evidence.answer_length(context), advance)


def renamed(listed: list[dict], before: str, after: str) -> list[dict]:
    """The list of files under the name that the artifact gets."""
    return [entry | {"path": after + entry["path"][len(before):]} for entry in listed]


def summary(bar: Progress, target: Path, record: dict) -> None:
    size = sum(entry["bytes"] for entry in record["files"])
    print(f"{target}  {size / 1e6:.1f} MB, {record['weights']}, context {record['context']}")
    q = record["quality"]
    if "perplexity" in q:
        print(f"perplexity {q['perplexity']:.2f} ({q['perplexity_delta'] * 100:+.2f} %), KL "
              f"{q['kl_divergence']:.2g}, top-1 {q['top1_agreement'] * 100:.1f} %")
    else:
        print(f"KL {q['kl_divergence']:.2g}, top-1 {q['top1_agreement'] * 100:.1f} % on random "
              "tokens")
    for probe in record["probes"]:
        if probe["text"] is not None:
            print(f"{probe['prompt']!r} → {probe['text']!r}")
    print(f"manifest: {manifest.path_of(target)}")
