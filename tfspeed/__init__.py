"""tfspeed makes Keras/TensorFlow language models fast, and proves it.

    import tfspeed
    model = tfspeed.load("smollm2-135m")
    for tokens in tfspeed.engine("xla", model).generate([[1, 2, 3]], new_tokens=8): ...
"""

import importlib

__version__ = "0.1.0"

# TensorFlow takes seconds to import: nothing is, until it is asked for.
_LAZY = {"load": ("tfspeed.models.load", "load"), "wrap": ("tfspeed.models.load", "wrap"),
         "engine": ("tfspeed.engines", "create"),
         "Sampling": ("tfspeed.engines.sampling", "Sampling"),
         "TfspeedError": ("tfspeed.errors", "TfspeedError")}


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module 'tfspeed' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)
