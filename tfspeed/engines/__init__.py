"""How the functions of a model are executed. `ENGINES` maps a name to what it is and its maker."""

from tfspeed.engines.tf_function import TfFunctionEngine
from tfspeed.errors import TfspeedError

ENGINES = {
    "graph": "tf.function, executed operator by operator by TensorFlow's runtime",
    "xla": "tf.function compiled by XLA: operators fused, one kernel launch a step",
}


def check(name: str) -> None:
    """Refuses a name that is no engine's."""
    if name not in ENGINES:
        raise TfspeedError(f"An engine must be one of {', '.join(ENGINES)}.", engine=name)


def create(name: str, model) -> TfFunctionEngine:
    """Returns the engine called `name` over a `LanguageModel`."""
    check(name)
    return TfFunctionEngine(model, jit_compile=name == "xla")
