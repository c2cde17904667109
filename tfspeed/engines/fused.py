"""The `fused` engine: a decoder as one LiteRT operator, compiled for this processor.

Why it is faster: a step through the `litert` engine's graph is a thousand small operators, and
half of its time passes between them. Here a layer is six stages of one operator, weights are read
once at the speed of memory, a prompt is read in tiles that read each weight once for twelve tokens,
and attention reads what is filled, not the capacity. It needs a C compiler where it runs; files
for phones come from the `litert` engine, whose operators every runtime has.
"""

import numpy as np

from tfspeed.engines.base import pad_left
from tfspeed.engines.litert_base import LiteRtBase
from tfspeed.errors import TfspeedError
from tfspeed.litert import fused_plan
from tfspeed.litert.compiler import library
from tfspeed.litert.formats import Formats
from tfspeed.litert.fused_exit import FusedExit
from tfspeed.litert.fused_paged import FusedPaged
from tfspeed.litert.fused_runtime import FusedProgram
from tfspeed.litert.fused_session import FusedSession, control_size
from tfspeed.litert.graph import TfliteFile
from tfspeed.litert.packed_cache import packed
from tfspeed.models.decoder import Decoder

_SMALLEST = 256  # slots of a cache; larger ones double
_USUAL = 4096  # slots that a file has signatures for from the start, where the context has them
_PROFILED = 64  # decode steps that a profile is the mean of
_ROWS = 512  # tokens that a call takes, of all rows of a batch together


class FusedEngine(LiteRtBase):
    """Args:
        weights: how the matrices are stored, see `litert.formats.Formats`. Keys and values are
            float32 with float32 weights, else float16; `cache=float32` says otherwise.
    """

    profile_source = (f"the clock of the operator's first thread, mean of {_PROFILED} steps; a "
                      "stage ends when all threads have done their share")

    pass_widths = 1, 2, 4, 8, 12, 24  # those that kernels/matrix.h has tiles for

    def __init__(self, model, weights: str = "float32"):
        if not isinstance(model.keras_model, Decoder):
            raise TfspeedError("The fused engine runs tfspeed's decoders only.", model=model.name,
                               type=type(model.keras_model).__name__, hint="Use --engine=xla.")
        library()  # no compiler: said before anything slow
        formats = Formats(weights)
        super().__init__(model, weights, packed(model, formats))
        self.name = f"fused:{weights}"
        self.config = model.keras_model.config
        self._half = formats.cache_itemsize == 2
        self._plan = fused_plan.make(self.config, self._packed, self._half)
        self._scorers: dict[int, FusedSession] = {}

    # What a stage of a pipeline is made of.

    @property
    def half(self) -> bool:
        """Whether keys and values are float16."""
        return self._half

    @property
    def threads(self) -> int:
        return self._threads

    def step_bytes(self, batch, context):
        itemsize = 2 if self._half else 4
        return self._packed.step_bytes + self.config.cache_bytes(batch, context, itemsize)

    def score(self, tokens):
        tokens = np.asarray(tokens, np.int32)
        length, vocabulary = tokens.shape[1], self.config.vocabulary_size
        if tokens.min() < 0 or tokens.max() >= vocabulary:  # C reads what it is told to
            raise TfspeedError(f"Token ids must lie in [0, {vocabulary}).", least=int(tokens.min()),
                               most=int(tokens.max()))
        if length not in self._scorers:
            self._scorers.clear()  # its logits may be a gigabyte
            self._scorers[length] = self._open(1, length, [-(-length // 16) * 16], length)
        scorer, rows = self._scorers[length], []
        for row in tokens:
            scorer.take_back(0)
            rows.append(scorer.read(row[None]).copy())
        return np.concatenate(rows)

    def profile(self, prompts):
        self._check(prompts, _PROFILED)
        tokens, lengths = pad_left(prompts, max(map(len, prompts)))
        session = self._new_session(len(prompts), tokens.shape[1] + _PROFILED)
        return session.profile(tokens, tokens.shape[1] - lengths, _PROFILED)

    def _new_session(self, batch, needed, logits=1):
        sizes = [_SMALLEST]
        while sizes[-1] < max(needed, min(self.config.context_length, _USUAL)):
            sizes.append(2 * sizes[-1])
        return self._open(batch, max(1, _ROWS // batch), sizes, logits)

    def open_text(self, prompt_tokens: int, new_tokens: int, widths: tuple[int, ...],
                  exit_layer: int):
        """See `FusedText`."""
        from tfspeed.speculation.fused_text import FusedText
        session = self._new_session(1, prompt_tokens + new_tokens, widths[-1])
        leaving = self._exit(session, exit_layer) if exit_layer else None
        return FusedText(self, session, widths, leaving)

    def _exit(self, session: FusedSession, layers: int) -> FusedExit:
        """What guesses at the next tokens of a session by its first layers."""
        plan, cache_type = fused_plan.first_layers(self._plan, layers), self._cache_type(1, layers)
        program = self._program(plan, 1, 1, [cache_type(size) for size in session.sizes])
        return FusedExit(session, program, plan, cache_type, self.config.vocabulary_size)

    def paged(self, texts: int, tokens: int, blocks: int, block: int) -> FusedPaged:
        """What reads pieces of up to `texts` texts in a call, of `tokens` tokens together, over a
        cache of `blocks` blocks of `block` tokens."""
        length, width = -(-tokens // texts), -(-self.config.context_length // block)
        cache = self._cache_type(blocks)(block)
        program = self._program(self._plan, texts, length, [cache], width=width)
        return FusedPaged(program, self._plan, cache, texts, length, width,
                          self.config.vocabulary_size)

    def _open(self, batch: int, length: int, sizes: list[int], logits: int) -> FusedSession:
        """A session over a new file."""
        cache_type = self._cache_type(batch)
        program = self._program(self._plan, batch, length, [cache_type(size) for size in sizes],
                                logits)
        return FusedSession(program, self._plan, cache_type, batch, length, sizes,
                            self.config.vocabulary_size, logits)

    def _program(self, plan, texts: int, length: int, caches: list, logits: int = 1,
                 width: int = 1) -> FusedProgram:
        """A file with a signature for each cache.

        Args:
            caches: their shapes and types.
            logits: tokens of a text that there is room for logits of.
            width: blocks that a text's table names.
        """
        vocabulary = self.config.vocabulary_size

        def write(file: TfliteFile):
            for i, cache_type in enumerate(caches):
                fused_plan.write(file, f"run_{i}", plan, (texts, length),
                                 control_size(texts, width), cache_type,
                                 (texts, logits, vocabulary))

        return self._load(write, lambda path: FusedProgram(path, self._threads, vocabulary,
                                                           logits))

    def _cache_type(self, blocks: int, layers: int = 0):
        """From the tokens of a block to shape and type, of so many layers (0: all): `[layers, 2,
        blocks, kv_heads, block, head_dim]`. A batch that has its cache to itself has a block a
        row."""
        config, half = self.config, self._half  # a session keeps this, and not the engine
        layers = layers or config.num_layers
        return lambda block: fused_plan.cache_type(config, half, layers, blocks, block)
