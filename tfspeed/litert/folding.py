"""Where a factor a channel can go in a block of a decoder, so that nothing is left to compute.

`W x = (W · t) (x / t)`: the division goes into the norm, or into the rows of the product, that made
`x`. Sources: SmoothQuant, arXiv:2211.10438; AWQ, arXiv:2306.00978.
"""

from collections.abc import Callable, Sequence

import numpy as np

from tfspeed.litert.dense import Dense
from tfspeed.models.config import DecoderConfig


def even_out(config: DecoderConfig, attention_norm: np.ndarray, mlp_norm: np.ndarray | None,
             layers: Sequence[Dense], factor_of: Callable[..., np.ndarray],
             divide: Callable[[int, np.ndarray], None]) -> None:
    """Moves a factor a channel between what made the inputs of a block's products and the products.

    The block computes what it did, up to rounding. Changed in place: norms, layers.

    Args:
        config: the block's own.
        attention_norm, mlp_norm: `[2, hidden]`, scale and bias; the latter None where one serves
            both.
        layers: query, key and value; out; up (with gate); down.
        factor_of: `t` of the inputs of layer `i`, called with `i` and the `[out, in]` matrices that
            read them.
        divide: told that the inputs of layer `i` are divided by `t`.
    """
    c, (fused, out, up, down) = config, layers
    pairs = [(attention_norm, (0, 2))] if mlp_norm is None else [(attention_norm, (0,)),
                                                                 (mlp_norm, (2,))]
    for norm, readers in pairs:
        if not all(layers[i].floating for i in readers):
            continue  # integers already: their inputs stay what they are
        # All read the same normed values; where the norm is shared, both saw them.
        factor = factor_of(readers[0], *(layers[i].reads for i in readers))
        norm /= factor
        for i in readers:
            layers[i].scale_inputs(factor)
            divide(i, factor)
    if fused.floating and out.floating:
        # Query heads that share a value head share its factors.
        group = (c.num_kv_heads, c.num_heads // c.num_kv_heads, c.head_dim)
        single = np.log(factor_of(1, out.reads)).reshape(group)
        factor = np.exp(single.mean(1, keepdims=True))
        rows = slice((c.num_heads + c.num_kv_heads) * c.head_dim, None)
        fused.scale_outputs(rows, 1 / factor.reshape(-1, 1))
        factor = np.broadcast_to(factor, group).reshape(-1)
        out.scale_inputs(factor)
        divide(1, factor)
    # A plain activation is not linear in its input.
    if c.gated_mlp and up.floating and down.floating:
        factor = factor_of(3, down.reads)
        down.scale_inputs(factor)
        divide(3, factor)
        up.scale_outputs(slice(c.mlp_dim, None), 1 / factor[:, None])
