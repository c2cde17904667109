"""The same operations and bytes, counted in the graph that TensorFlow has traced.

A dot product's operations follow from the shapes of what it reads; a loop counts as often as it
runs. Bytes are those of the variables that are read whole: of one that is only looked up (an
embedding) a row is read, which is nothing.

    graph = tf.function(model.step).get_concrete_function(tokens, state)
    count(graph).flops
"""

import dataclasses
import math

from tfspeed.errors import TfspeedError

_PRODUCTS = ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum")
_LOOKED_UP = ("ResourceGather", "ResourceGatherNd", "GatherV2")
_PASSED_ON = ("ReadVariableOp", "Identity")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_LOOPS = ("While", "StatelessWhile")


@dataclasses.dataclass(frozen=True)
class Counted:
    """Of one call of a function.

    Attributes:
        flops: of its dot products; a multiply-add is two.
        products: how many dot products it runs.
        variable_bytes: of the variables that it reads whole.
    """

    flops: int
    products: int
    variable_bytes: int


def count(concrete, loop_runs: int = 1) -> Counted:
    """Counts in a concrete function whose shapes are all known.

    Args:
        loop_runs: how often its loops run: the tokens that a recurrent layer reads.

    Raises:
        TfspeedError: the shape of a product depends on values.
    """
    flops, products = _products(concrete.graph, loop_runs)
    return Counted(flops, products, _read_whole(concrete))


def _products(graph, loop_runs: int) -> tuple[int, int]:
    flops = products = 0
    for operator in _needed(graph):
        if operator.type in _PRODUCTS:
            flops, products = flops + _flops(operator), products + 1
        elif operator.type in _CALLS + _LOOPS:
            loops = operator.type in _LOOPS
            inner = _function(graph, operator, "body" if loops else "f")
            more = _products(inner, loop_runs)
            runs = loop_runs if loops else 1
            flops, products = flops + runs * more[0], products + runs * more[1]
    return flops, products


def _needed(graph) -> list:
    """The operators that the outputs depend on; TensorFlow drops the others before it runs (Keras
    traces the first step of a recurrent layer once more, to see what comes out)."""
    found: dict[str, object] = {}
    waiting = [tensor.op for tensor in graph.outputs]
    while waiting:
        operator = waiting.pop()
        if operator.name not in found:
            found[operator.name] = operator
            waiting += [tensor.op for tensor in operator.inputs] + list(operator.control_inputs)
    return list(found.values())


def _function(graph, operator, attribute: str):
    """The graph of a function that an operator calls, with its shapes."""
    name = operator.get_attr(attribute).name
    while graph is not None:
        for candidate in (graph, getattr(graph, "outer_graph", None)):
            functions = getattr(candidate, "_functions", None)
            found = functions.get(name) if functions else None
            if found is not None and getattr(found, "graph", None) is not None:
                return found.graph
        graph = getattr(graph, "outer_graph", None)
    raise TfspeedError("A function that the graph calls was not found.", function=name)


def _flops(operator) -> int:
    left, right = (tensor.shape for tensor in operator.inputs[:2])
    out = operator.outputs[0].shape
    if not (left.is_fully_defined() and right.is_fully_defined() and out.is_fully_defined()):
        raise TfspeedError("Dot products are counted where their shapes are known.",
                           operator=operator.name, left=str(left), right=str(right))
    if operator.type == "Einsum":
        terms = operator.get_attr("equation").decode().partition("->")[0].split(",")
        sizes = {label: size for term, shape in zip(terms, (left, right), strict=True)
                 for label, size in zip(term, shape, strict=True)}
        return 2 * math.prod(sizes.values())
    transposed = "transpose_a" if operator.type == "MatMul" else "adj_x"
    summed = left[-2] if operator.get_attr(transposed) else left[-1]
    return 2 * out.num_elements() * summed


def _read_whole(concrete) -> int:
    """Bytes of the variables that any operator but a look-up reads."""
    graph, total = concrete.graph, 0
    inner = {id(placeholder): variable for variable, placeholder in
             _captured_variables(concrete)}
    for placeholder, variable in ((p, inner[id(p)]) for p in graph.inputs if id(p) in inner):
        if not _only_looked_up(placeholder):
            total += math.prod(variable.shape) * variable.dtype.size
    return total


def _only_looked_up(tensor) -> bool:
    """Whether all that uses a variable, or what was read of it, takes single rows."""
    return all(user.type in _LOOKED_UP or (user.type in _PASSED_ON
                                           and _only_looked_up(user.outputs[0]))
               for user in tensor.consumers())


def _captured_variables(concrete):
    """Pairs of a variable and the graph's input that stands for it."""
    handles = {id(variable.handle): variable for variable in concrete.variables}
    for outside, placeholder in zip(concrete.captured_inputs,
                                    concrete.graph.inputs[-len(concrete.captured_inputs):]
                                    if concrete.captured_inputs else [], strict=True):
        if id(outside) in handles:
            yield handles[id(outside)], placeholder
