"""What every engine offers: the checks of a request, and one generate loop's shape."""

from collections.abc import Iterator, Sequence

import numpy as np

from tfspeed.engines.sampling import Sampling
from tfspeed.errors import TfspeedError
from tfspeed.models.language_model import LanguageModel, check_fits

_SMALLEST_BUCKET = 16
FINISHED = -1  # what a row yields once it has met a stop token


def bucket(length: int) -> int:
    """The padded size of `length` tokens: a power of two, or one and a half of it.

    Few sizes mean few compilations; at most a third of a prefill is padding.
    """
    size = _SMALLEST_BUCKET
    while size < length:
        if size * 3 // 2 >= length:
            return size * 3 // 2
        size *= 2
    return size


def pad_left(prompts: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different lengths as int32 `[batch, length]`, with their lengths `[batch]`."""
    tokens = np.zeros((len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt):] = prompt
    return tokens, np.asarray([len(p) for p in prompts], np.int32)


class Engine:
    """Generates with a `LanguageModel`. Subclasses implement `_generate` and `score`.

    Attributes:
        traces: how many functions or files were made so far; later calls of like sizes make none.
        notes: what a report must say about it, one sentence each.
        profile_source: how `profile` knows its times, one phrase.
        open_text: gives a `speculation.texts.Text`, see `FusedText`; None where the engine cannot
            take tokens back.
        pass_widths: numbers of tokens that such a text reads at once, ascending, 1 first.
        takes_source: whether it runs models that read a source.
    """

    profile_source = ""
    open_text = None
    pass_widths: tuple[int, ...] = (1,)
    takes_source = False

    def __init__(self, name: str, model: LanguageModel):
        if model.reads_source and not self.takes_source:
            raise TfspeedError(f"The engine {name} runs no encoder.", model=model.name,
                               hint="Use --engine=xla, litert or litert:int8.")
        self.name, self.model = name, model
        self.traces = 0
        self.notes: list[str] = []

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int,
                 sampling: Sampling | None = None, stop_tokens: Sequence[int] = (), *,
                 encoded=None) -> Iterator[np.ndarray]:
        """Continues a batch of prompts, token by token.

        Args:
            prompts: token ids, one sequence a row; lengths may differ.
            new_tokens: how many tokens to add at most.
            sampling: greedy where None.
            stop_tokens: a row that yields one of them is finished.
            encoded: of `encode`, as many rows as prompts; None: nothing was said, or no encoder.

        Yields:
            int32 `[batch]` as soon as they are on the host; -1 in rows that are finished. Ends
            when all rows are.
        """
        sampling = sampling or Sampling()
        prompts = [list(map(int, prompt)) for prompt in prompts]
        self._check(prompts, new_tokens)
        stop_tokens = np.asarray(stop_tokens, np.int32)
        if not self.model.reads_source:
            return self._generate(prompts, new_tokens, sampling, stop_tokens)
        if encoded is None:
            encoded = self.encode(self.model.default_source(len(prompts)))
        return self._generate(prompts, new_tokens, sampling, stop_tokens, encoded=encoded)

    def score(self, tokens: np.ndarray, encoded=None):
        """float32 logits `[batch, length, vocabulary]` of int32 `[batch, length]`; `encoded` as in
        `generate`."""
        raise NotImplementedError

    def encode(self, source):
        """What a model's encoder makes of a source (see `EncoderDecoderModel.checked_source`), for
        `generate` and `score`; it may be given to several calls."""
        raise TfspeedError("This model reads no source.", model=self.model.name)

    def profile(self, prompts: Sequence[Sequence[int]]) -> list[dict]:
        """Times the parts of one decode step after these prompts.

        Returns:
            `{name, calls, seconds}` of each part, calls and seconds of one step; `kind` as well
            where parts are of the same kind. Together they take as long as a step.
        """
        raise TfspeedError(f"The engine {self.name} has no profile.",
                           hint="Use --engine=litert, or litert:int8.")

    def start_counting(self) -> None:
        """Generations from now on are those that `counted` tells of."""

    def counted(self) -> dict:
        """What a row must tell of how they went, named as in `measure.metrics.DEFINITIONS`."""
        return {}

    # What the weights are where this engine runs them.

    @property
    def weights_bytes(self) -> int:
        return self.model.weights_bytes

    @property
    def dtype(self) -> str:
        return self.model.dtype

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that share the work; () where one does it all."""
        return self.model.placement.devices

    @property
    def on_workers(self) -> bool:
        """Whether they are processes, each with threads of its own."""
        return any(name.startswith("worker ") for name in self.devices)

    @property
    def row_shares(self) -> int:
        """How many parts the rows of a batch are split into."""
        return self.model.placement.row_shares if self.devices else 1

    def step_bytes(self, batch: int, context: int) -> int:
        """See `LanguageModel.step_bytes`."""
        return self.model.step_bytes(batch, context)

    def _generate(self, prompts, new_tokens, sampling, stop_tokens) -> Iterator[np.ndarray]:
        raise NotImplementedError

    def _check(self, prompts, new_tokens):
        if not prompts:
            raise TfspeedError("A batch needs at least one prompt.", batch=0)
        if not self.model.pads and len(set(map(len, prompts))) > 1:
            raise TfspeedError(
                f"{self.model.name} cannot pad: the prompts of a batch must have one length.",
                lengths=[len(p) for p in prompts], hint="Send prompts of other lengths apart.")
        for prompt in prompts:
            check_fits(self.model, len(prompt), new_tokens)
            if not all(0 <= t < self.model.vocabulary_size for t in prompt):
                bad = next(t for t in prompt if not 0 <= t < self.model.vocabulary_size)
                raise TfspeedError(
                    f"Token ids must lie in [0, {self.model.vocabulary_size}).", token=bad)
