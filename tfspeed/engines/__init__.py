"""How the functions of a model are executed. `ENGINES` maps a name to what it is."""

import copy

from tfspeed.engines.base import Engine
from tfspeed.errors import TfspeedError

ENGINES = {
    "graph": "tf.function, executed operator by operator by TensorFlow's runtime",
    "xla": "tf.function compiled by XLA: operators fused, one kernel launch a step",
    "litert": "a .tflite file with the KV cache in place; litert:int8 or litert:int4 for "
              "quantized weights",
    "fused": "a decoder as one LiteRT operator, compiled for this processor; fused:int8, "
             "fused:int4",
}
_PACKED = ("litert", "fused")  # take a format of the weights after a colon

PROFILED = ("litert", "fused")  # those whose `profile` tells where a step's time goes


def check(name: str) -> None:
    """Refuses what `create` would refuse: a name of `ENGINES`, after a colon its options."""
    kind, colon, weights = name.partition(":")
    if kind not in ENGINES or (colon and kind not in _PACKED):
        raise TfspeedError(f"An engine must be one of {', '.join(ENGINES)}, or "
                           "litert:WEIGHTS or fused:WEIGHTS.", engine=name)
    if colon:
        from tfspeed.litert.formats import Formats
        Formats(weights)


def check_dtype(name: str, dtype: str) -> None:
    """Refuses a type of the model's variables where the engine has a form of its own for them."""
    kind = name.partition(":")[0]
    if dtype != "float32" and kind in _PACKED:
        raise TfspeedError(f"The engine {kind} packs the weights itself: --dtype is for graph and "
                           "xla.", dtype=dtype, engine=name,
                           hint=f"Use --engine={kind}:float16, {kind}:int8 or {kind}:int4.")


def check_profiled(name: str) -> None:
    """Refuses an engine that has no profile."""
    if name.partition(":")[0] not in PROFILED:
        raise TfspeedError("--profile needs an engine that can be profiled: "
                           f"{' or '.join(PROFILED)}.", engine=name,
                           hint="Use --engine=litert, or litert:int8.")


def create(name: str, model) -> Engine:
    """Returns the engine called `name` over a `LanguageModel`. Imported only when asked for."""
    check(name)
    _check_spread(name, model.placement)
    if model.placement.engine is not None:
        alone = copy.copy(model)
        alone.placement = model.placement.inside()
        _check_spread(name, alone.placement)
        return model.placement.engine(_create(name, alone))
    return _create(name, model)


def _check_spread(name: str, placement) -> None:
    """Refuses an engine that needs all weights on one device where they are spread."""
    if placement.engines and name.partition(":")[0] not in placement.engines:
        raise TfspeedError(f"The engine {name.partition(':')[0]} runs a whole model on one device, "
                           "and the weights of this one are spread over several.", engine=name,
                           devices=list(placement.devices),
                           hint=f"Use --engine={' or '.join(placement.engines)}, or leave out the "
                                "strategy that spreads them.")


def _create(name: str, model) -> Engine:
    made = _alone(name, model)
    if model.speculation is None:
        return made
    from tfspeed.speculation.engine import SpeculativeEngine
    return SpeculativeEngine(made, model.speculation)


def _alone(name: str, model) -> Engine:
    kind, _, weights = name.partition(":")
    if kind == "litert":
        return _litert(model, weights or "float32")
    if kind == "fused":
        from tfspeed.engines.fused import FusedEngine
        return FusedEngine(model, weights or "float32")
    from tfspeed.engines.tf_function import TfFunctionEngine
    return TfFunctionEngine(model, jit_compile=kind == "xla")


def _litert(model, weights: str) -> Engine:
    from tfspeed.models.recurrent import Recurrent
    if isinstance(model.keras_model, Recurrent):
        from tfspeed.engines.litert_recurrent import RecurrentLiteRtEngine
        return RecurrentLiteRtEngine(model, weights)
    if model.reads_source:
        from tfspeed.engines.litert_seq2seq import EncoderDecoderLiteRtEngine
        return EncoderDecoderLiteRtEngine(model, weights)
    from tfspeed.engines.litert import LiteRtEngine
    return LiteRtEngine(model, weights)
