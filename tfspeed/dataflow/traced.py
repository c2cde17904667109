"""The chains that a model's calls are, from traces in the shapes of a pipeline's work."""

import tensorflow as tf

from tfspeed.dataflow.graph import Graph, decoder_chain, trace
from tfspeed.dataflow.plan import Work


def chains(decoder, work: Work, source=None) -> tuple[dict[str, Graph], tf.Graph]:
    """The graphs of a call by kind, contracted, and TensorFlow's own of a step.

    Args:
        decoder: a `Decoder`, or an `EncoderDecoder`.
        source: of which the latter reads `work.source_piece` rows at once.
    """
    def prefill(tokens, lengths, *source):
        state = decoder.initial_state(tokens.shape[0], work.capacity)
        return decoder.logits(decoder.forward(tokens, lengths, state, *source)[0][:, -1])

    def step(tokens, lengths, state, *source):
        return decoder.logits(decoder.forward(tokens, lengths, state, *source)[0][:, -1])

    def shapes(rows, length):
        return tf.TensorSpec((rows, length), tf.int32), tf.TensorSpec((rows,), tf.int32)

    def encoded(rows):
        if source is None:
            return ()
        hidden = tf.TensorSpec((rows, work.source, decoder.config.hidden_dim),
                               decoder.compute_dtype)
        bias = tf.TensorSpec((rows, 1, 1, work.source), tf.float32)
        return (_shapes_of(decoder.for_decoder, hidden, bias),)

    state = _shapes_of(lambda: decoder.initial_state(work.rows, work.capacity))
    reading, _ = trace(prefill, *shapes(work.piece, work.length), *encoded(work.piece))
    stepping, operators = trace(step, *shapes(work.rows, 1), state, *encoded(work.rows))
    made = {"prefill": decoder_chain(reading, len(decoder.numbers)),
            "step": decoder_chain(stepping, len(decoder.numbers))}
    if source is not None:
        encoding, _ = trace(lambda x: decoder.read_source(x, decoder.source_bias(x)),
                            tf.TensorSpec(source.shape, source.dtype))
        made = {"encode": decoder_chain(encoding, len(decoder.encoder)), **made}
    return made, operators


def _shapes_of(function, *arguments):
    """Of what a function gives, a nest of TensorSpecs."""
    made = tf.function(function).get_concrete_function(*arguments).structured_outputs
    return tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), made)
