"""Recovery: a changed model learns the original's distributions again, in minutes (distillation).

What changes: the values of the weights, by a short training. The teacher is the model as it was
loaded; the loss is KL(teacher ‖ student) over the next tokens of a text, mixed with cross-entropy
where asked for. `full` trains all float32 weights; `lora` norms, biases, and adapters on every
Dense, which are merged at the end. Weights that are packed integers stay; zeros of a pruned matrix
stay zero. With `bits` the matrices are read as a later `quantize` will round them, by TFMOT's
quantizers (quantization-aware training). Runs on every replica of `mirrored` and every worker of
`multi_worker` (named before it), to the same result. Of an encoder–decoder both sides learn: what
was said after the sounds of `--calibration`, a text after itself where sources are tokens. Four
windows are held out: where the loss on them did not fall, the weights stay as they were.
Why it is faster: it is not; it pays for what made the model faster. Put it behind that strategy:
`--strategy=prune_structured+distill`. Before `quantize` it trains weights that lose little when
rounded: `--strategy=distill+quantize --distill_bits=4 --quantize_bits=4 --quantize_method=rtn
--quantize_smooth=false` (smoothing would move the grid that was trained on).
When it is not: behind a change that costs nothing. It cannot bring back what a few ten thousand
tokens do not show, and the project's own calibration text (6,000 tokens) is read over and over:
give a text by `--calibration`, or `--distill_data=self`. Nor on the few sounds that the change
before it was fitted to: those the model still reads as before.
What it costs: by default (40,000 tokens) some five minutes for 135 M parameters on 2 cores.
Memory in full: the teacher, the student, its gradients, twice its size for Adam; lora: little over
the two models. A checkpoint is three times the weights while it runs, once afterwards; it stays,
and the same command takes the trained weights from it.
Exact: no. See BUILD.md for perplexities before and after.
Source: arXiv:1503.02531 (distillation), arXiv:2106.09685 (LoRA), arXiv:2305.17888 (data=self, and
bits).
"""

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np

import tfspeed
from strategies.base import Strategy, option
from tfspeed import gate
from tfspeed.compression import copying, targets
from tfspeed.compression.sources import Sources, sources
from tfspeed.compression.tfmot_qat import Rounded, fake_quantized
from tfspeed.errors import TfspeedError
from tfspeed.litert.weights import BLOCKS, fitting
from tfspeed.training import TrainOptions, text, train
from tfspeed.training.learning import every

_SPARSE = 0.01  # a matrix with a larger share of zeros was pruned
_HEARING_RATE = 1e-5  # of a model that hears, where none is given: 3e-5 made Whisper worse
_HELD = 4  # windows that it is judged by, of at least four times as many


@dataclasses.dataclass(frozen=True)
class Options:
    tokens: int = option(40_000, "how many are read")
    learning_rate: float = option(0.0, "its peak; 0: a default for full or lora, and for what "
                                       "hears")
    trainable: str = option("full", "full, or lora: adapters, merged at the end")
    rank: int = option(16, "of the adapters")
    length: int = option(256, "tokens of a window")
    batch: int = option(4, "windows a step")
    data: str = option("text", "text: that of --calibration; self: what the teacher writes")
    temperature: float = option(1.0, "softens the distributions that are compared")
    cross_entropy: float = option(0.0, "share of the loss on the text itself, 0 to 1")
    teacher: str = option("", "the model to learn from; default: the one of --model, as loaded")
    bits: int = option(0, "quantization-aware: matrices are read as rounded to 4 or 8 bits, tables "
                           "to 8; 0: as they are")
    group: int = option(32, "for bits=4: values of a row that share a scale; 0: the whole row")
    checkpoint: str = option("", "folder that an interrupted run goes on from")
    checkpoint_seconds: float = option(TrainOptions.checkpoint_seconds,
                                       "between two writings of the checkpoint")
    seed: int = option(0, "of the order of the text, and of what the teacher writes")


class Distill(Strategy):
    name = "distill"
    Options = Options

    def __init__(self, options=None):
        super().__init__(options)
        o = self.options
        if o.data not in text.SOURCES:
            raise TfspeedError(f"distill_data must be one of {', '.join(text.SOURCES)}.",
                               distill_data=o.data)
        if o.length < 2:
            raise TfspeedError("distill_length must be at least 2.", distill_length=o.length)
        if not 0 <= o.seed < 2**31:
            raise TfspeedError("distill_seed must lie in [0, 2**31).", distill_seed=o.seed)
        if o.bits not in (0, 4, 8) or o.group not in BLOCKS:
            raise TfspeedError("distill_bits must be 0, 4 or 8, distill_group 0, 32, 64 or 128.",
                               distill_bits=o.bits, distill_group=o.group)
        if o.bits and o.trainable == "lora":
            raise TfspeedError("Adapters leave the matrices as they are: none learns to be "
                               "rounded.", distill_trainable=o.trainable, distill_bits=o.bits,
                               hint="Use distill_trainable=full.")
        known = {field.name for field in dataclasses.fields(TrainOptions)}
        self._training = TrainOptions(**{name: value for name, value in vars(o).items()
                                         if name in known})

    @property
    def max_perplexity_increase(self):
        return gate.INT8  # what it follows says its own

    def apply(self, model, data=None):
        student, teacher = copying.copied(model), self._teacher(model)
        o = self.options
        windows, after = self._read(model, teacher, data)
        held, training = _held(len(windows)), self._training
        if getattr(model, "heard", None) is not None and o.trainable == "full":
            training = dataclasses.replace(training,
                                           learning_rate=o.learning_rate or _HEARING_RATE)
        masks = _masks(student)
        if masks and o.trainable == "lora":
            raise TfspeedError("Merged adapters would fill the zeros of a pruned model.",
                               distill_trainable=o.trainable, hint="Use distill_trainable=full.")
        with _rounded(student.keras_model, o.bits, o.group) as rounded:
            result = train(student, teacher, windows, training,
                           (lambda step: _hold(masks)) if masks else None, after, held)
            for matrix in rounded:
                matrix.settle()
        self._tell(student, windows, result, len(masks), training.peak)
        nearer = self._judged(result, len(held))
        if not nearer:
            return copying.copied(model)
        self._tell_what_is_left(windows, len(held))
        if after is not None:
            self._lines.append(f"Each window was read after one of {len(after.distinct)} sources; "
                               "the encoder learned as well.")
        return student

    def _read(self, model, teacher, data) -> tuple[np.ndarray, Sources | None]:
        """Windows of text, and what they come after."""
        o = self.options
        budget = o.tokens + _HELD * o.length
        if o.data == "self" and not model.reads_source:
            return text.written(teacher, budget, o.length, o.seed, o.checkpoint), None
        windows = text.windows(model, data, budget, o.length)
        after = sources(model, windows)
        if o.data == "self":
            windows = text.written(teacher, budget, o.length, o.seed, o.checkpoint, after)
            after = after.spread(len(windows))
        return windows, after

    def _teacher(self, model):
        if self.options.teacher:
            teacher = tfspeed.load(self.options.teacher)
        elif model.reload is not None:
            teacher = model.reload()
        else:
            raise TfspeedError("There is no original to learn from: this model was made in memory.",
                               model=model.name, hint="Give --distill_teacher=MODEL.")
        if teacher.vocabulary_size != model.vocabulary_size:
            raise TfspeedError("Teacher and student need one vocabulary.",
                               teacher=teacher.vocabulary_size, student=model.vocabulary_size)
        return teacher

    def _judged(self, result, count: int) -> bool:
        """Whether it came nearer on what is held out, of so many windows."""
        before, now = result["held_first"], result["held_last"]
        if before is None:
            self._lines.append("There is too little to read to judge by some of it.")
            return True
        self._lines.append(f"Loss on {count} windows that were not learned from: {before:.4f} → "
                           f"{now:.4f}.")
        if not now < before:
            self._lines.append("It did not fall: the weights stay as they were. Try a lower "
                               "distill_learning_rate, or more to read (--calibration).")
        return now < before

    def _tell(self, student, windows, result, masked: int, peak: float) -> None:
        o, new = self.options, result["tokens"]
        spent = (f"{new} tokens in {result['seconds']:.0f} s ({new / result['seconds']:.0f} "
                 "tokens/s)" if new else "nothing was left to do")
        what = "all float32 weights" if o.trainable == "full" else \
            f"adapters of rank {o.rank}, norms and biases"
        self._lines = [
            f"Trained {what} ({result['trained'] / 1e6:.2f} M) at a peak rate of "
            f"{peak:g}: {spent}.",
            f"Loss {result['loss_first']:.4f} → {result['loss_last']:.4f} over {result['steps']} "
            f"steps of {o.batch} windows of {windows.shape[1]} tokens."]
        if masked:
            self._lines.append(f"{masked} pruned matrices kept their zeros.")
        kept = student.parameters - sum(int(np.prod(v.shape)) for v in every(student.keras_model))
        if kept:
            self._lines.append(f"{kept / 1e6:.2f} M values were left as they are: packed, or not "
                               "float32.")

    def _tell_what_is_left(self, windows, held: int) -> None:
        """Of weights that were trained and kept."""
        o = self.options
        if o.bits:
            self._lines.append(f"Matrices are rounded to {o.bits} bits and still kept as floats: "
                               "`quantize` stores them in as many.")
        learned = (len(windows) - held) * windows.shape[1]
        if o.tokens > 1.5 * learned:
            self._lines.append(f"The text has {learned} tokens to learn from: it was read "
                               f"{o.tokens / learned:.1f} times. A longer --calibration "
                               "generalizes better.")
        if o.checkpoint:
            self._lines.append(f"The trained weights stay in {o.checkpoint}: the same command "
                               "takes them from there.")


@contextlib.contextmanager
def _rounded(keras_model, bits: int, group: int) -> Iterator[list[Rounded]]:
    """While entered, matrices are read as `quantize` will round them; as they are for 0 bits."""
    found = targets.find(keras_model) if bits else []
    forms: dict[tuple[int, int], list] = {}
    for target in found:
        width = 8 if target.name in ("embedding", "head") else bits
        # As `quantize` does where groups do not divide the rows: a convolution's are 3 · inputs.
        block = fitting(group, target.shape[1]) if width == 4 else 0
        forms.setdefault((width, block), []).append(target)
    with contextlib.ExitStack() as stack:
        yield [rounded for (width, block), some in forms.items() for rounded in
               stack.enter_context(fake_quantized(keras_model, width, some, block))]


def _held(windows: int) -> np.ndarray:
    """Numbers of the windows that are not learned from, spread evenly; () of too few."""
    count = min(_HELD, windows // 4)
    return np.linspace(0, windows - 1, count + 2)[1:-1].astype(int)


def _masks(student) -> list:
    """Pairs of a pruned matrix's variable and where it is not zero."""
    pairs = []
    for variable in every(student.keras_model):
        if len(variable.shape) > 1:
            mask = variable.numpy() != 0
            if 1 - mask.mean() > _SPARSE:
                pairs.append((variable, mask))
    return pairs


def _hold(masks) -> None:
    for variable, mask in masks:
        variable.assign(variable.numpy() * mask)
