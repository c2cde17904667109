"""A stage of a pipeline over an encoder–decoder: some layers of either side.

What the encoder made of a source goes round to all stages; each keeps keys and values of it for its
own layers of the decoder.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from keras import Model

from tfspeed.dataflow.stage import Stage, joined
from tfspeed.models.encoder_decoder import EncoderDecoder
from tfspeed.models.encoder_decoder_model import without


class StageEncoderDecoder(EncoderDecoder):
    """Some layers of another encoder–decoder, which are shared with it. Takes sources and tokens
    where it has the first, else hidden states.

    Args:
        layers, encoder_layers: numbers of layers, in their order.
        first, last, head: see `StageDecoder`; the encoder's first and last stage are the decoder's.
    """

    def __init__(self, whole: EncoderDecoder, layers: Sequence[int], encoder_layers: Sequence[int],
                 first: bool, last: bool, head: bool = False):
        Model.__init__(self, dtype=whole.dtype_policy)
        c = self.config = whole.config
        self.numbers, self.first, self.last = tuple(layers), first, last
        self.encoder = [whole.encoder[i] for i in encoder_layers]
        self.decoder = [whole.decoder[i] for i in layers]
        # T5's tables of distances are read by all layers.
        self.positions = list(whole.positions) if first or c.positions == "relative" else []
        if first and c.source == "audio":
            self.convolutions = list(whole.convolutions)
        if first and c.embedding_norm:
            self.embedding_norms = list(whole.embedding_norms)
        if last and c.final_norm:
            self.final_norms = list(whole.final_norms)
        self.head = None
        if first or ((last or head) and whole.head is None):
            self.embedding = whole.embedding
        if last or head:
            self.head = whole.head
            if c.logit_bias:
                self.logit_bias = whole.logit_bias
        self.built = True

    def read_source(self, x, bias, run_block=None):
        """See `EncoderDecoder`; `x` are sources, or hidden states of the stage before."""
        x = self.through_encoder(self.embed_source(x) if self.first else x, bias)
        return self.final_norms[0](x) if self.last and self.config.final_norm else x

    def read(self, x, positions, slots, caches, index, encoded, run_block=None):
        """See `EncoderDecoder.read`; `x` are tokens, or hidden states of the stage before."""
        x = self.embed_tokens(x, positions) if self.first else x
        x, filled = self.through(x, positions, slots, caches, index, encoded)
        return (self.final_norms[1](x) if self.last and self.config.final_norm else x), filled


class ListeningStage(Stage):
    """Answers two more kinds of messages: `encode` (x, [bias]) reads sources through the encoder's
    layers, where the last stage gives the encoder's result; `hear` (x, bias) keeps keys and values
    of that. The other kinds say in their header which `source` and `group` they are of.

    Args:
        suppressed, suppressed_first: see `EncoderDecoderConfig`.
    """

    def __init__(self, decoder: StageEncoderDecoder, jit_compile: bool, suppressed,
                 suppressed_first):
        super().__init__(decoder, jit_compile)
        self._never = suppressed, {*suppressed, *suppressed_first}
        self._sources: dict[tuple[int, int], list] = {}

    def keep(self, sources) -> None:
        """Drops what was heard of all other sources."""
        self._sources = {key: made for key, made in self._sources.items() if key[0] in sources}

    def _ends(self, header):
        return header["kind"] != "encode" and super()._ends(header)

    def _encode(self, header, x, *bias):
        self.keep(header["kept"])
        x, bias = self._function("encode", header)(tf.constant(x), *map(tf.constant, bias))
        return x, (np.asarray(bias),)

    def _hear(self, header, x, bias):
        made = self._function("hear", header)(tf.constant(x), tf.constant(bias))
        parts = self._sources.setdefault((header["source"], header["group"]), [])
        parts += [made] * header["copies"]
        return np.zeros(0, np.float32) if self.last else x, (bias,)

    def _source(self, header, rows):
        parts = self._sources[header["source"], header["group"]]
        if len(parts) > 1:
            parts[:] = [joined(parts)]
        if rows == len(parts[0]["bias"]):
            return tuple(parts)
        begin = header["begin"]
        return (tf.nest.map_structure(lambda t: t[begin:begin + rows], parts[0]),)

    def _make_encode(self, capacity, choose):
        def encode(x, bias=None):
            self.traces += 1
            bias = self.decoder.source_bias(x) if bias is None else bias
            return self.decoder.read_source(x, bias), bias

        return encode

    def _make_hear(self, capacity, choose):
        def hear(x, bias):
            self.traces += 1
            return self.decoder.for_decoder(x, bias)

        return hear

    def _logits(self, hidden, first=False):
        return without(super()._logits(hidden), self._never[first])
