"""An `EncoderDecoder` as a `LanguageModel`: what was encoded is given once, the state is the
decoder's KV cache."""

import copy

import numpy as np
import tensorflow as tf

from tfspeed.errors import TfspeedError
from tfspeed.models.checkpoint import Checkpoint, filled_model
from tfspeed.models.decoder_model import first_blocks
from tfspeed.models.encoder_decoder import MASKED, PADDING, EncoderDecoder
from tfspeed.models.language_model import LanguageModel, variable_bytes
from tfspeed.models.seq2seq_names import named_variables

SILENCE = -1.5  # of a log-mel frame, in Whisper's scale
_NOTE = ("Without a source this model reads text after silence: speed is what it is, perplexity "
         "says little. scripts/scenario.py measures its words.")


class EncoderDecoderModel(LanguageModel):
    """See `LanguageModel`; `keras_model` is an `EncoderDecoder`.

    Attributes:
        suppressed, suppressed_first: see the config; `score` knows nothing of them.
        heard: sources that take turns where none is given, for strategies that calibrate; None: an
            empty one.
        said: what each of them says, int32 `[sources, length]`: such a text is read after its own.
    """

    reads_source = True

    def __init__(self, name: str, keras_model: EncoderDecoder, tokenizer=None, source=None,
                 notes=()):
        c = keras_model.config
        super().__init__(name, keras_model, c.vocabulary_size, c.context_length, tokenizer, source,
                         notes)
        if c.source == "audio" and _NOTE not in self.notes:
            self.notes.append(_NOTE)
        self.suppressed, self.suppressed_first = c.suppressed, c.suppressed_first
        self.heard: np.ndarray | None = None
        self.said: np.ndarray | None = None
        self._turn = 0
        self._encoded = None

    @property
    def config(self):
        return self.keras_model.config

    @property
    def layers(self) -> int:
        """Of the decoder."""
        return self.config.decoder_layers

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, dtype: str = "float32",
                        ) -> "EncoderDecoderModel":
        made = filled_model(
            checkpoint, lambda: EncoderDecoder(checkpoint.config, dtype=dtype,
                                               name="encoder_decoder"), named_variables)
        return cls(checkpoint.name, made, checkpoint.tokenizer, checkpoint.source,
                   checkpoint.notes)

    def default_source(self, batch: int) -> np.ndarray:
        """What is read where no source is given: silence, or nothing but an end token; or the next
        of `heard`."""
        c = self.config
        if self.heard is not None:
            self._turn += batch
            return self.heard[np.arange(self._turn - batch, self._turn) % len(self.heard)]
        if c.source == "audio":
            return np.full((batch, c.source_frames, c.mels), SILENCE, np.float32)
        ends = self.tokenizer.eos_ids if self.tokenizer else ()
        return np.full((batch, 1), ends[0] if ends else 0, np.int32)

    def checked_source(self, source) -> np.ndarray:
        """A source as `encode` takes it.

        Raises:
            TfspeedError: it has another form, or is too long.
        """
        c = self.config
        if c.source == "audio":
            source = np.asarray(source, np.float32)
            shape = (c.source_frames, c.mels)
            if source.ndim != 3 or source.shape[1:] != shape or not len(source):
                raise TfspeedError("The source of this model is log-mel frames, [batch, "
                                   f"{shape[0]}, {shape[1]}].", shape=source.shape,
                                   hint="tfspeed.audio.log_mel makes them of samples.")
            if not np.isfinite(source).all():
                raise TfspeedError("The source must be finite.")
            return source
        rows = [list(map(int, row)) for row in source]
        if not rows or not all(rows):
            raise TfspeedError("A source needs at least one token a row.", rows=len(rows))
        longest = max(map(len, rows))
        if longest > c.source_length:
            raise TfspeedError(f"The source must fit into the encoder's {c.source_length} "
                               "positions.", tokens=longest, hint="Split the text.")
        bad = [t for row in rows for t in row if not PADDING <= t < c.vocabulary_size]
        if bad:
            raise TfspeedError(f"Token ids must lie in [0, {c.vocabulary_size}).", token=bad[0])
        width = 16
        while width < longest:
            width = width * 3 // 2 if width * 3 // 2 >= longest else width * 2
        padded = np.full((len(rows), min(width, c.source_length)), PADDING, np.int32)
        for i, row in enumerate(rows):
            padded[i, :len(row)] = row
        return padded

    def encode(self, source):
        """The encoder's part of the work: what `given` takes, a nest of tensors `[batch, …]`."""
        return self.keras_model.encode(source)

    def given(self, encoded) -> "EncoderDecoderModel":
        """This model after a source."""
        made = copy.copy(self)
        made._encoded = encoded
        return made

    def initial_state(self, batch, capacity):
        return self.keras_model.initial_state(batch, capacity)

    def prefill(self, tokens, lengths, state):
        logits, state = self._read(tokens, lengths, state)
        return without(logits, {*self.suppressed, *self.suppressed_first}), state

    def step(self, tokens, state):
        logits, state = self._read(tokens[:, None], tf.ones_like(tokens), state)
        return without(logits, self.suppressed), state

    def _read(self, tokens, lengths, state):
        hidden, state = self.keras_model.forward(tokens, lengths, state, self._source_of(tokens))
        return self.keras_model.logits(hidden[:, -1]), state

    def read(self, tokens, positions, slots, caches, index, layers: int = 0):
        """See `DecoderModel.read`; logits are those that `step` gives."""
        model = self.keras_model
        hidden, caches = model.read(tokens, positions, slots, caches, index,
                                    self._source_of(tokens), first_blocks(model.decoder, layers, 1))
        return without(model.logits(hidden), self.suppressed), caches

    def _source_of(self, tokens):
        if self._encoded is not None:
            return self._encoded
        source = tf.convert_to_tensor(self.default_source(tokens.shape[0]))
        if self.said is not None and tokens.shape[1] <= self.said.shape[1]:
            same = tf.reduce_all(tokens[:, None] == self.said[None, :, :tokens.shape[1]], -1)
            own = tf.gather(self.heard, tf.argmax(tf.cast(same, tf.int32), -1))
            source = tf.where(tf.reduce_any(same, -1)[:, None, None], own, source)
        return self.encode(source)

    def score(self, tokens):
        return self.keras_model.score(tokens, self._source_of(tokens))

    def step_bytes(self, batch, context):
        model, c = self.keras_model, self.config
        read = [v for block in model.decoder for v in block.weights
                if "key_value" not in v.path.split("/")[-2:]]
        read += list((model.embedding if model.head is None else model.head).weights)
        itemsize = tf.as_dtype(model.compute_dtype).size
        source = c.source_length if c.source == "audio" else 1
        return (sum(variable_bytes(v) for v in read)
                + c.attended_bytes(batch, context, source, itemsize))


def without(logits, ids):
    """Logits `[..., vocabulary]` that never give some ids."""
    if not ids:
        return logits
    never = np.zeros(logits.shape[-1], bool)
    never[sorted(ids)] = True
    # Chosen, not added: XLA makes one loop of a product and a sum, thirty times as slow.
    return tf.where(never, MASKED, logits)
