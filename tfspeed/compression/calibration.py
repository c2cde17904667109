"""Calibration text read through a model, layer by layer: what each matrix sees."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tfspeed.compression.block_reader import CHUNK, Reader
from tfspeed.compression.targets import Target
from tfspeed.errors import TfspeedError
from tfspeed.litert.smooth import CALIBRATION_TEXT, normalized
from tfspeed.memory import give_back
from tfspeed.models.conversion import replaced_calls
from tfspeed.models.decoder import Decoder
from tfspeed.models.language_model import LanguageModel

# Four bits by GPTQ cost SmolLM2 4.3 % perplexity with 24 windows of a text like the evaluation's,
# 2.0 % with 128.
_WINDOWS, _RANDOM_WINDOWS = 128, 24
_GRAM_BYTES = 1 << 28  # of Gram matrices kept at a time for a model that has no blocks


@dataclasses.dataclass(frozen=True, eq=False)
class Observed:
    """What one layer has read.

    Attributes:
        gram: mean of `x xᵀ` over tokens, float32 `[in, in]`, each token's `x` scaled to RMS 1 (in
            a language model the first token can be a hundred times as large as the others); None
            where the layer's inputs are not observed (tables that are only looked up,
            convolutions, products that share an axis with their input).
        count: tokens seen.
    """

    target: Target
    gram: np.ndarray | None
    count: int


def tokens(model: LanguageModel, data: str | None = None, windows: int | None = None,
           length: int = 256) -> np.ndarray:
    """Calibration tokens, int32 `[windows, length]`: stretches spread evenly over the text.

    Args:
        data: text; None: the project's own (6,000 tokens). Never the text of the evaluation.
        windows: at most; None: 128 of text, fewer of random tokens.

    Raises:
        TfspeedError: the text is shorter than one window, or the model reads no text.
    """
    length = min(length, model.context_length)
    if model.tokenizer is None:
        if data is not None:
            raise TfspeedError("A calibration text needs a tokenizer, and this model has none.",
                               model=model.name, hint="Leave --calibration out: random tokens are "
                                                      "read in its place.")
        return np.random.default_rng(0).integers(
            0, model.vocabulary_size, (windows or _RANDOM_WINDOWS, length), np.int32)
    if data is None:
        data = CALIBRATION_TEXT.read_text(encoding="utf-8")
    ids = np.asarray(model.tokenizer.encode(data), np.int32)
    available = len(ids) // length
    if available < 1:
        raise TfspeedError("The calibration text is too short.", tokens=len(ids), needed=length,
                           hint="Give a longer --calibration.")
    chosen = np.linspace(0, available - 1, min(windows or _WINDOWS, available)).astype(int)
    found = ids[:available * length].reshape(available, length)[chosen]
    # Of a speech model also what is said: other texts ask nothing of what it hears.
    said = getattr(model, "said", None)
    return found if said is None else np.concatenate([said[:, :length], found])


def stream(model: LanguageModel, targets: Sequence[Target], tokens: np.ndarray,
           change: Callable[[list[Observed]], None]) -> None:
    """Reads tokens `[windows, length]` and hands over the targets group by group.

    A decoder goes block by block, and its head last; a block is changed before the next one reads,
    so that later layers see what earlier ones became. Only one block's activations are kept.

    Args:
        change: may change the layers of its group.
    """
    def changed(group):
        change(group)
        give_back()  # of the float matrices: the next block's come on top otherwise

    if isinstance(model.keras_model, Decoder):
        _by_block(model.keras_model, targets, tokens, changed)
    else:
        _by_passes(model, targets, tokens, changed)


class _Watch:
    """Sums up what layers read."""

    def __init__(self, targets: Sequence[Target]):
        self.targets = [target for target in targets if target.plain]
        self.sums = {id(t): np.zeros((t.shape[1], t.shape[1]), np.float32) for t in self.targets}
        self.counts = dict.fromkeys(self.sums, 0)

    def watching(self):
        """The context in which it does."""
        def make(target):
            def of(call):
                def watched(x, *args, **kwargs):
                    self.add(target, target.rows(x))
                    return call(x, *args, **kwargs)

                return watched
            return of

        return replaced_calls(*((target.layer, make(target)) for target in self.targets))

    def add(self, target, rows: np.ndarray) -> None:
        rows = normalized(rows)
        self.sums[id(target)] += rows.T @ rows
        self.counts[id(target)] += len(rows)

    def observed(self, targets: Sequence[Target]) -> list[Observed]:
        def of(target):
            count = self.counts.get(id(target), 0)
            return Observed(target, self.sums[id(target)] / count if count else None, count)

        return [of(target) for target in targets]


def _by_block(decoder: Decoder, targets, tokens, change) -> None:
    groups: dict[str, list[Target]] = {}
    for target in targets:
        groups.setdefault(target.name.split("/")[0], []).append(target)

    reader = Reader(decoder, tokens)
    for i, block in enumerate(decoder.blocks):
        group = groups.pop(block.name, [])
        if group:
            watch = _Watch(group)
            with watch.watching():
                for _ in reader.outputs(i, reader.x):
                    pass
            change(watch.observed(group))
        reader.through(i, reader.x, into=reader.x)
    for group in groups.values():  # embedding, head
        change([_head(decoder, target, reader.x) for target in group])


def _head(decoder: Decoder, target: Target, hidden) -> Observed:
    """The table is the output layer as well where the two are tied.

    Args:
        hidden: what the last block gave, `[windows, length, hidden]`.
    """
    if target.layer is not (decoder.embedding if decoder.head is None else decoder.head):
        return Observed(target, None, 0)
    gram, count = 0.0, 0
    for at in range(0, len(hidden), CHUNK):
        rows = normalized(target.rows(decoder.final_norm(hidden[at:at + CHUNK])))
        gram, count = gram + rows.T @ rows, count + len(rows)
    return Observed(target, gram / count, count)


def _by_passes(model: LanguageModel, targets, tokens, change) -> None:
    """Several passes over the text where all Gram matrices at once would be large."""
    waiting = list(targets)
    while waiting:
        group, size = [], 0
        while waiting and (not group or size + _size(waiting[0]) <= _GRAM_BYTES):
            group.append(waiting.pop(0))
            size += _size(group[-1])
        watch = _Watch(group)
        with watch.watching():
            for window in tokens if watch.targets else ():
                model.score(window[None])
        change(watch.observed(group))


def _size(target: Target) -> int:
    return 4 * target.shape[1] ** 2 if target.plain else 0
