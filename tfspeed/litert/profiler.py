"""Times every operator of a `.tflite` signature with LiteRT's own profiler.

LiteRT's Python package has no profiler; its C library has one, and XNNPACK tells it of each of its
operators. So a file is loaded once more here, through the C functions.
"""

import time
from pathlib import Path

import numpy as np

from tfspeed.litert.c_api import ProfiledProgram
from tfspeed.quiet import captured_stderr

SOURCE = ("LiteRT's profiler, operator by operator, XNNPACK's too; each is told in whole "
          "microseconds, the rest is cut off")
BETWEEN = "between operators"
_STEPS = 30


def profile(path, signature: str, inputs: dict[str, np.ndarray], threads: int) -> list[dict]:
    """Runs a signature and times its operators.

    Args:
        inputs: by name; those not given, such as caches, are zeros.
        threads: how many the kernels may use.

    Returns:
        `{name, kind, calls, seconds}` of every operator of one run, in their order (a matrix
        product has the name of its weight), and what a run takes beyond them.
    """
    with captured_stderr(), ProfiledProgram(path, signature, threads) as loaded:
        for name, value in inputs.items():
            loaded.fill(name, value)
        loaded.run()
        plain = []
        for _ in range(_STEPS):
            start = time.perf_counter()
            loaded.run()
            plain.append(time.perf_counter() - start)
        events = loaded.events(_STEPS)
    # A run's operators come in the same order each time.
    times = np.asarray([elapsed for _, elapsed in events], np.float64).reshape(_STEPS, -1).mean(0)
    kinds = [kind for kind, _ in events[:len(times)]]
    products, seen, parts = iter(product_names(path, signature)), {}, []
    for kind, elapsed in zip(kinds, times, strict=True):
        seen[kind] = seen.get(kind, -1) + 1
        name = next(products, None) if _is_product(kind) else None
        parts.append({"name": name or f"{kind} {seen[kind]}", "kind": kind, "calls": 1,
                      "seconds": float(elapsed) * 1e-6})
    rest = float(np.median(plain)) - sum(part["seconds"] for part in parts)
    return [*parts, {"name": BETWEEN, "kind": BETWEEN, "calls": 1, "seconds": max(0.0, rest)}]


def _is_product(kind: str) -> bool:
    return kind.replace("_", " ").lower().startswith("fully connected")


def product_names(path, signature: str) -> list[str]:
    """The weights of a signature's matrix products, in the order of the products."""
    from ai_edge_litert import schema_py_generated as schema
    model = schema.ModelT.InitFromPackedBuf(Path(path).read_bytes(), 0)
    index = next(s.subgraphIndex for s in model.signatureDefs
                 if s.signatureKey.decode() == signature)
    graph, names, made = model.subgraphs[index], [], {}
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex].builtinCode
        if code == schema.BuiltinOperator.DEQUANTIZE:
            made[operator.outputs[0]] = operator.inputs[0]
        if code == schema.BuiltinOperator.FULLY_CONNECTED:
            weight = operator.inputs[1]
            names.append(graph.tensors[made.get(weight, weight)].name.decode())
    return names
