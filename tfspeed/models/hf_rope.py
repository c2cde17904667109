"""RoPE as Hugging Face's config.json writes it, before transformers 5 and since.

Formulas: transformers' modeling_rope_utils.py. Before version 5: `rope_theta`, `rope_scaling`
and `partial_rotary_factor` side by side; since then all in `rope_parameters`.
"""

import math

from tfspeed.errors import TfspeedError
from tfspeed.models.config import RopeConfig
from tfspeed.models.metadata import Metadata

_OUTSIDE = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")


def rope_values(meta: Metadata) -> dict:
    """What a config says about RoPE, gathered from wherever it may stand."""
    values = {key: meta.values[key] for key in _OUTSIDE if meta.has(key)}
    for section in ("rope_scaling", "rope_parameters"):
        values |= {k: v for k, v in meta.get(section, dict, {}).items() if v is not None}
    return values


def rope_fraction(values: dict) -> float:
    fraction = Metadata(values, "RoPE config").get("partial_rotary_factor", float, 1.0)
    return _within("partial_rotary_factor", fraction, 1e-6, 1.0)


def rope_from_hf(values: dict, rotary_dim: int, context: int, theta: float) -> RopeConfig:
    """Args:
        values: what `rope_values` gave.
        rotary_dim: channels that are rotated, even.
        context: the model's context length in tokens.
        theta: taken where the config has none.
    """
    meta = Metadata(values, "RoPE config")
    theta = _within("rope_theta", meta.get("rope_theta", float, theta), 1.0, 1e30)
    kind = meta.get("rope_type", str, meta.get("type", str, "default"))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, factors=(_factor(meta),) * (rotary_dim // 2))
    if kind == "llama3":
        return RopeConfig(theta=theta, factors=_llama3(meta, rotary_dim, theta))
    if kind in ("longrope", "su"):
        return _longrope(meta, context, theta)
    raise TfspeedError("This way of stretching RoPE is not supported.", rope_type=kind,
                       hint="Supported: default, linear, llama3, longrope.")


def _llama3(meta: Metadata, rotary_dim: int, theta: float) -> tuple[float, ...]:
    factor = _factor(meta)
    low = _within("low_freq_factor", meta.get("low_freq_factor", float), 1e-6, 1e6)
    high = _within("high_freq_factor", meta.get("high_freq_factor", float), 1e-6, 1e6)
    if high <= low:
        raise TfspeedError("high_freq_factor must be greater than low_freq_factor.",
                           low_freq_factor=low, high_freq_factor=high)
    original = _original(meta)
    factors = []
    for channel in range(0, rotary_dim, 2):
        # Whole turns within the original context: fast channels stay, slow ones are stretched.
        turns = original / (2 * math.pi * theta**(channel / rotary_dim))
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - kept) / factor + kept))
    return tuple(factors)


def _longrope(meta: Metadata, context: int, theta: float) -> RopeConfig:
    short, long = (tuple(_within(key, Metadata({key: value}, "RoPE config").get(key, float),
                                 1e-6, 1e6) for value in meta.get(key, list))
                   for key in ("short_factor", "long_factor"))
    original = _original(meta)
    stretch = meta.get("factor", float, context / original)
    attention = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    attention = _within("attention_factor", meta.get("attention_factor", float, attention),
                        1e-3, 1e3)
    if long == short:
        return RopeConfig(theta=theta, factors=short, attention_factor=attention)
    return RopeConfig(theta=theta, factors=short, long_factors=long, original_context=original,
                      attention_factor=attention)


def _factor(meta: Metadata) -> float:
    return _within("factor", meta.get("factor", float), 1e-6, 1e6)


def _original(meta: Metadata) -> int:
    key = "original_max_position_embeddings"
    return int(_within(key, meta.get(key, int), 2, 2**31 - 1))


def _within(key: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:
        raise TfspeedError(f"{key} must lie between {low:g} and {high:g}.", **{key: value})
    return value
