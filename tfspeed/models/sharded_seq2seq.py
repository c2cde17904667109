"""An encoder–decoder whose weights are spread over the replicas of a `tf.distribute` strategy: both
sides' heads and columns, and the keys and values of a source with the heads that read them."""

from tfspeed.models.encoder_decoder_model import EncoderDecoderModel
from tfspeed.models.sharded import Sharded


class ShardedEncoderDecoder(Sharded, EncoderDecoderModel):
    """Of an `EncoderDecoder`."""

    def encode(self, source):
        return self.keras_model.encode(source, self._run_block)

    def score(self, tokens):
        return self._logits(self.keras_model.hidden(tokens, self._source_of(tokens),
                                                    self._run_block))

    @property
    def sums(self) -> int:
        """Of the decoder."""
        return 3 * self.config.decoder_layers

    def _read(self, tokens, lengths, state):
        hidden, state = self.keras_model.forward(tokens, lengths, state, self._source_of(tokens),
                                                 self._run_block)
        return self._logits(hidden[:, -1]), state

    def _logits(self, hidden):
        if self.config.logit_bias:  # no layer's own, so it is in no compiled piece
            return self.keras_model.logits(hidden)
        return super()._logits(hidden)

    def _run_block(self, block, x, bias, cache=None, index=None, keys_values=None,
                   source_bias=None):
        part, cache = self.pieces(_attend, block, x, bias, cache, index)
        if block.crosses:
            x, part = self.pieces(_look, block, x, self._sum(part), *keys_values, source_bias)
        x, part = self.pieces(_feed, block, x, self._sum(part))
        return _added(block, x, self._sum(part), block.mlp_norm), cache


def _attend(block, x, bias, cache, index):
    return block.attention(_normed(block, x, block.attention_norm), None, bias, cache, index)


def _look(block, x, attended, keys, values, bias):
    x = _added(block, x, attended, block.attention_norm)
    return x, block.cross(_normed(block, x, block.cross_norm), keys, values, bias)


def _feed(block, x, attended):
    x = _added(block, x, attended, block.cross_norm if block.crosses else block.attention_norm)
    return x, block.mlp(_normed(block, x, block.mlp_norm))


def _normed(block, x, norm):
    return norm(x) if block.config.pre_norm else x


def _added(block, x, out, norm):
    return x + out if block.config.pre_norm else norm(x + out)
