"""Every replica computes some heads and MLP columns of each layer (Megatron), sums in between.

What changes: heads (with the key head that they share) and columns of the MLP are spread over the
replicas of a tf.distribute strategy; after attention and after the MLP their results are added up
(one sum a layer where attention and MLP read the same, a third after an encoder–decoder's
cross-attention). Embedding, norms and head are whole on each. Alone it makes a MirroredStrategy
over the devices here; under the scope of another strategy with several replicas
(`multi_worker+tensor_parallel`) it takes that one.
Why it is faster: a decode step is bound by reading weights, and R devices with memory of their own
each read an R-th of the layers. It is what makes one request faster, and what lets a model run that
is too large for one device.
When it is not: two sums a layer wait for one another, 60 a token for SmolLM2, and each costs at
least the latency of the link: small models on slow links get slower, as `scripts/scaling.py` says
beforehand. Logical CPU devices share cores and memory: nothing is gained there.
What it costs: heads of zeros where they do not divide evenly (the report says how many). XLA cannot
compile a collective into a program on CPUs: under `xla` the half-blocks between are compiled.
Exact: yes, up to the order of sums: the same greedy tokens as on one device.
Source: https://arxiv.org/abs/1909.08053
"""

import dataclasses

import tensorflow as tf

from strategies.base import Strategy, option
from tfspeed.costs import communication
from tfspeed.devices import mirrored_strategy, replica_devices
from tfspeed.errors import TfspeedError
from tfspeed.models.decoder import Decoder
from tfspeed.models.sharded import ShardedModel
from tfspeed.models.sharded_seq2seq import ShardedEncoderDecoder


@dataclasses.dataclass(frozen=True)
class Options:
    replicas: int = option(0, "parts of the model; 0: one on each GPU, or one on each core without "
                              "GPUs; under another distribution strategy its replicas")


class TensorParallel(Strategy):
    name = "tensor_parallel"
    Options = Options
    spreads = True
    reads_part = True

    def __init__(self, options=None):
        super().__init__(options)
        self._devices, self._refused = [], None
        try:
            # Logical devices must exist before TensorFlow starts, hence before any model is loaded.
            self._devices = replica_devices(self.options.replicas)
        except TfspeedError as error:
            if self.options.replicas < 0:
                raise
            self._refused = error  # of no matter under another strategy

    def scope(self):
        if _outer() is None and self._refused:
            raise self._refused
        return super().scope()  # the whole model is loaded on one device, and split by `apply`

    def apply(self, model, data=None):
        decoder, kind = model.keras_model, ShardedModel
        if model.reads_source:
            kind = ShardedEncoderDecoder
        elif not isinstance(decoder, Decoder):
            raise TfspeedError("tensor_parallel splits the heads of a decoder, and this model is "
                               "none.", model=model.name, type=type(decoder).__name__,
                               hint="Use mirrored, which shares out the requests.")
        elif decoder.config.parallel_residual and decoder.config.post_norms:
            raise TfspeedError("tensor_parallel cannot add up attention and MLP at once where each "
                               "is normed first.", model=model.name)
        strategy = _outer()
        if strategy is None:
            strategy, devices = mirrored_strategy(self._devices), self._devices
        else:
            devices = [f"replica {i}" for i in range(strategy.num_replicas_in_sync)]
            if self.options.replicas not in (0, len(devices)):
                raise TfspeedError("Under another distribution strategy the parts are "
                                   "its replicas.", tensor_parallel_replicas=self.options.replicas,
                                   replicas=len(devices))
        sharded = kind(model, strategy, devices)
        self._tell(model, sharded)
        return sharded

    def _tell(self, model, sharded) -> None:
        decoder, devices = sharded.keras_model, sharded.placement.devices
        own = sharded.split_bytes
        sent = communication.all_reduce(len(devices), sharded.sum_bytes(1))
        whole = sharded.weights_bytes - own
        self._lines = [
            f"{len(devices)} replicas on {', '.join(devices)}: each holds "
            f"{sharded.weights_bytes / 1e6:.1f} MB of the {model.weights_bytes / 1e6:.1f} MB of "
            f"weights, {own / 1e6:.1f} MB of heads and columns of its own and "
            f"{whole / 1e6:.1f} MB (embedding, head, norms) that all hold.",
            f"{sharded.filling:.1%} of the heads and columns are zeros: "
            f"{_spread(model.config, decoder.config, len(devices))}.",
            f"A token takes {sharded.sums} sums over the replicas, one after the other; in each of "
            f"its rows a replica sends {sent.sent_bytes:.0f} bytes (ring all-reduce of "
            f"{sharded.sum_bytes(1)} bytes)."]
        if devices[0].startswith("CPU"):
            self._lines.append("These are logical devices of one CPU: they share its cores and its "
                               "memory bandwidth, so expect to lose what the sums cost.")


def _outer() -> tf.distribute.Strategy | None:
    """The strategy of the scope that this one is used under, if it has several replicas."""
    strategy = tf.distribute.get_strategy()
    return strategy if strategy.num_replicas_in_sync > 1 else None


def _spread(config, shard, replicas: int) -> str:
    what, name = ("groups of heads", "num_kv_heads") if hasattr(config, "num_kv_heads") else (
        "heads", "num_heads")
    return (f"{getattr(config, name)} {what} over {replicas} replicas are {getattr(shard, name)} "
            f"on each, {config.mlp_dim} columns {shard.mlp_dim}")
