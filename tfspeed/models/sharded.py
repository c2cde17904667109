"""A model whose weights are spread over the replicas of a `tf.distribute` strategy."""

import copy

import numpy as np
import tensorflow as tf

from tfspeed.devices import per_replica
from tfspeed.errors import TfspeedError
from tfspeed.models import sharding
from tfspeed.models.decoder_model import DecoderModel
from tfspeed.models.language_model import Placement, variable_bytes
from tfspeed.models.pieces import Pieces


class Shards(Placement):
    """Runs functions on all replicas of a strategy, each with all rows: the weights are split."""

    exchanges = True
    engines = ("graph", "xla")

    def __init__(self, strategy: tf.distribute.Strategy, devices, engine=None):
        self.strategy, self.devices, self.engine = strategy, tuple(devices), engine

    def inside(self):
        return Shards(self.strategy, self.devices)

    def run(self, function, *args):
        return self.strategy.run(function, args=args)

    def gather(self, value):
        return np.asarray(self.strategy.experimental_local_results(value)[0])


class Sharded:
    """Which replica it is, and the sums over all, come from the replica context: the strategy may
    have its replicas on the devices of one machine, or in the processes of many.

    Args:
        model: the whole one; its weights are copied.

    Attributes:
        split_bytes: of the weights of which each replica has its own.
        filling: the fraction of those that are zeros, over all replicas.
        sums: how many times a pass over a text adds up over the replicas.
    """

    def __init__(self, model, strategy: tf.distribute.Strategy, devices):
        replicas = strategy.num_replicas_in_sync
        decoder = sharding.build(model.keras_model, replicas)
        decoder.replica = self._replica
        super().__init__(model.name, decoder, model.tokenizer, model.source, model.notes)
        self.reload = model.reload
        self.placement = Shards(strategy, devices, model.placement.engine)  # of the processes
        self.pieces = Pieces(compiled=False)
        self._parameters = model.parameters
        self.split_bytes = 0
        self.filling = sharding.filling(model.keras_model, replicas)
        with strategy.scope():
            for variable, values in sharding.parts(decoder, model.keras_model, replicas):
                _fill(strategy, variable, values)
                self.split_bytes += variable_bytes(variable) if callable(values) else 0

    def in_compiled_pieces(self):
        """The same, everything between two sums compiled by XLA."""
        made = copy.copy(self)
        made.pieces = Pieces(compiled=True)
        return made

    @property
    def parameters(self):
        return self._parameters

    def step_bytes(self, batch, context):
        """Of all replicas together."""
        return len(self.placement.devices) * super().step_bytes(batch, context)

    def sum_bytes(self, tokens: int) -> int:
        """Bytes of all that a pass over so many tokens adds up."""
        itemsize = tf.as_dtype(self.keras_model.compute_dtype).size
        return self.sums * tokens * self.config.hidden_dim * itemsize

    def _sum(self, part):
        """Over the replicas."""
        return self._context().all_reduce(tf.distribute.ReduceOp.SUM, part)

    def _replica(self):
        return self._context().replica_id_in_sync_group

    def _context(self) -> tf.distribute.ReplicaContext:
        context = tf.distribute.get_replica_context()
        if context is None or context.strategy is not self.placement.strategy:
            raise TfspeedError("A sharded model runs on all its replicas at once.",
                               hint="Call it through an engine, or through `placement.run`.")
        return context

    def _logits(self, hidden):
        decoder = self.keras_model
        return self.pieces(self._project, decoder.head or decoder.embedding, hidden)

    def _project(self, layer, hidden):
        return self.keras_model.logits(hidden)


class ShardedModel(Sharded, DecoderModel):
    """Of a `Decoder`."""

    def prefill(self, tokens, lengths, state):
        hidden, state = self.keras_model.forward(tokens, lengths, state, self._run_block)
        return self._logits(hidden[:, -1]), state

    def score(self, tokens):
        return self._logits(self.keras_model.hidden(tokens, self._run_block))

    @property
    def sums(self) -> int:
        return (1 if self.config.parallel_residual else 2) * self.config.num_layers

    def _run_block(self, block, x, rope, bias, cache, index):
        if block.config.parallel_residual:  # both halves read x: one sum does for both
            part, cache = self.pieces(_both, block, x, rope, bias, cache, index)
            return x + self._sum(part), cache
        part, cache = self.pieces(_attend, block, x, rope, bias, cache, index)
        x, part = self.pieces(_feed, block, x, self._sum(part))
        out = self._sum(part)
        return x + (block.mlp_post_norm(out) if block.mlp_post_norm else out), cache


def _attend(block, x, rope, bias, cache, index):
    return block.attention(block.attention_norm(x), rope, bias, cache, index)


def _feed(block, x, attended):
    if block.attention_post_norm:
        attended = block.attention_post_norm(attended)
    x = x + attended
    return x, block.mlp(block.mlp_norm(x))


def _both(block, x, rope, bias, cache, index):
    normed = block.attention_norm(x)
    attended, cache = block.attention(normed, rope, bias, cache, index)
    return attended + block.mlp(normed if block.mlp_norm is None else block.mlp_norm(x)), cache


def _fill(strategy: tf.distribute.Strategy, variable, values) -> None:
    """Gives a Keras variable memory on every replica of this process, and its values.

    Args:
        values: see `sharding.parts`.
    """
    if not callable(values):
        variable._initialize(values)
        return
    variable._initialize(values(0))
    ids = per_replica(strategy, range(strategy.num_replicas_in_sync))
    for replica, own in zip(strategy.experimental_local_results(ids),
                            strategy.experimental_local_results(variable.value), strict=True):
        if int(replica):
            own.assign(values(int(replica)))
