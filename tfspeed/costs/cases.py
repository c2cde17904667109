"""What is timed: made-up models of a few sizes, by engine, threads, batch and length.

Those that a calibration is made from and those that it is checked on have no model in common.
"""

import dataclasses

from tfspeed.models.config import DecoderConfig

PACKED = ("fused", "litert")  # engines which keep weights in formats of their own
ENGINES = (*PACKED, "graph", "xla")  # those that there are constants of
METRICS = ("ttft_s", "tpot_s")
CACHED, UNCACHED = 8 << 20, 512 << 20  # bytes that are read as fast as the cache, and as memory


@dataclasses.dataclass(frozen=True)
class Case:
    """One generation that is timed; `model` is a name of `MODELS`, or what `load` takes."""

    model: str
    engine: str
    threads: int
    batch: int
    prompt_tokens: int
    new_tokens: int

    @property
    def label(self) -> str:
        return (f"{self.model}, {self.engine}, {self.threads} threads, batch {self.batch}, "
                f"{self.prompt_tokens} + {self.new_tokens}")


def _decoder(layers, hidden, heads, kv_heads, dim, mlp, vocabulary, **changes) -> DecoderConfig:
    return DecoderConfig(vocabulary_size=vocabulary, num_layers=layers, hidden_dim=hidden,
                         num_heads=heads, num_kv_heads=kv_heads, head_dim=dim, mlp_dim=mlp,
                         context_length=4096, **changes)


_PLAIN = {"family": "gpt2", "positions": "learned", "norm": "layer", "activation": "gelu_tanh",
          "gated_mlp": False, "qkv_bias": True, "mlp_bias": True, "attention_out_bias": True}
MODELS = {  # a calibration's
    "cal-small": _decoder(2, 384, 6, 2, 64, 1024, 4096),
    "cal-thin": _decoder(6, 128, 2, 1, 64, 256, 1024),  # tells layers from calls
    "cal-deep": _decoder(6, 384, 6, 2, 64, 1024, 4096),
    "cal-middle": _decoder(2, 768, 12, 4, 64, 2304, 8192),
    "cal-plain": _decoder(2, 640, 10, 10, 64, 2560, 12288, **_PLAIN),
    "cal-large": _decoder(2, 1536, 12, 4, 128, 4096, 8192),
    # Held out: no calibration reads them.
    "llama-60m": _decoder(8, 640, 10, 5, 64, 1792, 24576),
    "gpt2-85m": _decoder(9, 768, 12, 12, 64, 3072, 20480, **_PLAIN),
    "gemma-90m": _decoder(6, 896, 4, 1, 256, 3584, 16384, qk_norm=True, post_norms=True,
                          activation="gelu_tanh", family="gemma"),
    "wide-170m": _decoder(5, 1280, 20, 4, 64, 4608, 40960),
    "mini-15m": _decoder(5, 448, 7, 7, 64, 1216, 6144),
}
DEFAULT_MODEL = "smollm2-135m"


def calibration(engine: str, threads: int, short: bool = False) -> list[Case]:
    """The generations that the constants of a kind of engine are fitted to; `short`: where those
    of another number of threads are known already."""
    if engine in PACKED:
        return [Case(model, f"{engine}:{form}", threads, *load)
                for model, forms, loads in _FORMED[engine][short]
                for form in forms for load in loads]
    return [Case(model, engine, threads, *load)
            for model, engines, loads in (_COMPILED_SHORT if short else _COMPILED)
            if engine in engines for load in loads]


_ALL = ("float32", "float16", "int8", "int4,head=int4")
_FORMS = ("float32", "int8", "int4,head=int4")  # LiteRT makes floats of halves
_FUSED = [  # model, formats, loads: batch, prompt, new
    ("cal-large", ("int8",), ((1, 48, 12), (3, 24, 8))),
    ("cal-large", ("int4,head=int4",), ((1, 48, 12),)),
    ("cal-small", _ALL, ((1, 96, 16), (7, 32, 12))),
    ("cal-thin", ("float32", "int8"), ((1, 64, 24),)),
    ("cal-thin", ("int8",), ((6, 160, 12),)),
    ("cal-middle", ("float32", "int8"), ((1, 64, 16), (4, 120, 12), (12, 40, 12))),
    ("cal-middle", ("float16", "int4,head=int4"), ((1, 64, 16), (3, 100, 12))),
    ("cal-middle", ("int8", "int4,head=int4"), ((1, 900, 12),)),
    ("cal-plain", ("int8",), ((1, 128, 16), (5, 100, 12)))]
_FUSED_SHORT = [
    ("cal-small", ("float32", "int8"), ((1, 96, 16), (7, 32, 12))),
    ("cal-middle", ("float32", "int4,head=int4"), ((1, 64, 16), (4, 60, 12))),
    ("cal-middle", ("int8",), ((1, 64, 16), (4, 120, 12), (1, 900, 12))),
    ("cal-middle", ("float16",), ((1, 64, 16),)),
    ("cal-thin", ("int8",), ((1, 64, 24),)),
    ("cal-large", ("int8",), ((1, 48, 12),))]
_LITERT = [  # eight rows are one tile of XNNPACK's kernels, or two
    ("cal-small", _FORMS, ((1, 96, 16), (8, 32, 12))),
    ("cal-thin", ("float32", "int8"), ((1, 64, 24),)),
    ("cal-middle", _FORMS, ((1, 64, 16), (4, 120, 12))),
    ("cal-middle", ("int8",), ((1, 900, 12),)),
    ("cal-large", ("int8", "int4,head=int4"), ((1, 40, 12),))]
_LITERT_SHORT = [
    ("cal-small", ("float32", "int8"), ((1, 96, 16),)),
    ("cal-middle", _FORMS, ((4, 120, 12),)),
    ("cal-thin", ("int8",), ((1, 64, 24),)),
    ("cal-middle", ("int8",), ((1, 64, 16),)),
    ("cal-large", ("int8",), ((1, 40, 12),))]
_FORMED = {"fused": (_FUSED, _FUSED_SHORT), "litert": (_LITERT, _LITERT_SHORT)}
_COMPILED = [
    # Eight texts of 300 tokens: without them nothing tells what a step's attention costs.
    ("cal-small", ("graph", "xla"), ((8, 300, 12),)),
    ("cal-thin", ("graph",), ((1, 60, 20),)),  # layers of next to no products
    # What XLA fuses takes longer where it is as wide as in models that are used.
    ("cal-deep", ("xla",), ((1, 60, 20),)),
    ("cal-large", ("graph", "xla"), ((1, 40, 8),))]
_COMPILED_SHORT = [("cal-small", ("graph", "xla"), ((4, 300, 8),)),
                   ("cal-thin", ("graph",), ((1, 60, 20),)),  # whose operators wait for each other
                   ("cal-large", ("graph", "xla"), ((1, 40, 8),))]


def held_out(threads: int) -> list[Case]:
    """What predictions are checked on."""
    found = []
    loads = ((1, 130, 16), (3, 70, 12), (8, 48, 12), (1, 700, 12))
    compiled = ((1, 80, 12), (4, 50, 12), (1, 250, 12))
    for i, model in enumerate((DEFAULT_MODEL, "llama-60m", "gpt2-85m", "gemma-90m", "wide-170m",
                               "mini-15m")):
        # Shifted from model to model, so that every load meets every format.
        found += [Case(model, kind, threads, *loads[(i + j + threads) % len(loads)])
                  for j, kind in enumerate(("fused", "fused:float16", "fused:int8",
                                            "fused:int4,head=int4"))]
        # One format of each model under litert: the six of them have each of the three twice.
        form = ("litert", "litert:int8", "litert:int4,head=int4")[(i + threads) % 3]
        found.append(Case(model, form, threads, *loads[(i + threads) % len(loads)]))
        found += [Case(model, engine, threads, *compiled[(i + j + threads) % len(compiled)])
                  for j, engine in enumerate(("graph", "xla"))]
    return found
