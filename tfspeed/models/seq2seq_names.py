"""The variables of an `EncoderDecoder` under the names that its loaders use.

Names (kernels are `[in, out]`, those of convolutions `[3, in, out]`; `i` counts layers):
    embedding.weight, logit_bias.weight, head.kernel, convolution_0|1.kernel|bias, and for each side
    (`encoder`, `decoder`): `positions.weight`, `embedding_norm`, `norm` `.scale|bias`, and for each
    layer `<side>.i.`: attention_norm, cross_norm, mlp_norm `.scale|bias`; attention.query_key_value
    (or query, key and value apart) and attention.out, cross.query, cross.key_value (or key and
    value apart), cross.out, mlp.gate_up (or gate and up apart) or mlp.up, mlp.down `.kernel|bias`.
"""

from tfspeed.models.encoder_decoder import EncoderDecoder


def named_variables(model: EncoderDecoder) -> dict:
    """Every variable under its name."""
    c = model.config
    found = {"embedding.weight": model.embedding._embeddings}

    def add(prefix, layer):
        for part in ("kernel", "scale", "bias"):
            if getattr(layer, part, None) is not None:
                found[f"{prefix}.{part}"] = getattr(layer, part)

    if c.source == "audio":
        for i, layer in enumerate(model.convolutions):
            add(f"convolution_{i}", layer)
    if c.logit_bias:
        found["logit_bias.weight"] = model.logit_bias
    if model.head is not None:
        add("head", model.head)
    for at, (side, blocks) in enumerate((("encoder", model.encoder), ("decoder", model.decoder))):
        found[f"{side}.positions.weight"] = model.positions[at]._embeddings
        if c.embedding_norm:
            add(f"{side}.embedding_norm", model.embedding_norms[at])
        if c.final_norm:
            add(f"{side}.norm", model.final_norms[at])
        for i, block in enumerate(blocks):
            own = f"{side}.{i}."
            for name in ("attention_norm", "mlp_norm", *["cross_norm"] * block.crosses):
                add(own + name, getattr(block, name))
            for name, layer in (("query_key_value", block.attention.query_key_value),
                                ("out", block.attention.out)):
                add(f"{own}attention.{name}", layer)
            for name in ("query", "key_value", "out") if block.crosses else ():
                add(f"{own}cross.{name}", getattr(block.cross, name))
            add(f"{own}mlp.{block.mlp.up.name}", block.mlp.up)
            add(f"{own}mlp.down", block.mlp.down)
    return found
