"""A model's operators as a graph, from a trace: floating-point operations, bytes, and edges.

Traced by TensorFlow without running anything; shapes are those of one microbatch, so every count is
a number. Contracted by a function from an operator's name to its block, the graph becomes a chain
of decoder blocks, or another DAG.
"""

import dataclasses
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

_PRODUCTS = ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
_FREE = ("Const", "Placeholder", "Reshape", "Shape", "NoOp", "Identity", "ReadVariableOp",
         "StridedSlice", "ExpandDims", "Squeeze")  # no arithmetic; views of what there is
# TensorFlow numbers a scope that was there before.
_BLOCK = re.compile(r"(?:block|encoder|decoder)_(\d+)(_\d+)*/")


@dataclasses.dataclass
class Node:
    """An operator, or a block of them.

    Attributes:
        flops: a product of [m, k] by [k, n] counts 2 m k n, any other one for each element made.
        weight_bytes: of the variables that it reads.
        moved_bytes: of all that it reads and writes, those of variables among them.
        seconds: what a run costs, once somebody has said so.
    """

    name: str
    flops: int = 0
    weight_bytes: int = 0
    moved_bytes: int = 0
    operators: int = 1
    seconds: float = 0.0


@dataclasses.dataclass
class Graph:
    """Nodes in an order in which they can run; `edges` are bytes by (from, to) of their indices."""

    nodes: list[Node]
    edges: dict[tuple[int, int], int]

    @property
    def is_chain(self) -> bool:
        return set(self.edges) <= {(i, i + 1) for i in range(len(self.nodes) - 1)}

    def roofline(self, flops_per_s: float, bytes_per_s: float) -> None:
        """Fills in `seconds`: what takes longer, arithmetic or memory (Williams et al. 2009)."""
        for node in self.nodes:
            node.seconds = max(node.flops / flops_per_s, node.moved_bytes / bytes_per_s)


def trace(function: Callable, *arguments) -> tuple[Graph, tf.Graph]:
    """The operators of a function of tensors, and TensorFlow's own graph of them.

    Args:
        arguments: nests of tensors or TensorSpecs, of known shapes.
    """
    made = tf.function(function, autograph=False).get_concrete_function(*arguments)
    operators = made.graph.get_operations()
    index = {op.name: i for i, op in enumerate(operators)}
    variables = {captured.op.name: size for captured, size in _variables(made)}
    nodes, edges = [], defaultdict(int)
    for i, op in enumerate(operators):
        weights = variables.get(op.inputs[0].op.name, 0) if op.type == "ReadVariableOp" else 0
        moved = 0 if op.type in _FREE else sum(map(_bytes, {*_ids(op.inputs), *_ids(op.outputs)}))
        nodes.append(Node(op.name, _flops(op), weights, moved))
        for given in _ids(op.inputs):
            edges[index[given.deref().op.name], i] += _bytes(given)
    return Graph(nodes, dict(edges)), made.graph


def contract(graph: Graph, block_of: Callable[[str, int], str]) -> Graph:
    """One node a block; an edge holds the bytes of what one block makes and another reads, each
    value once.

    Args:
        block_of: from an operator's name and index to its block's name.
    """
    names = [block_of(node.name, i) for i, node in enumerate(graph.nodes)]
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    nodes = [Node(name, operators=0) for name in order]
    for name, node in zip(names, graph.nodes, strict=True):
        block = nodes[order[name]]
        for field in ("flops", "weight_bytes", "moved_bytes", "operators"):
            setattr(block, field, getattr(block, field) + getattr(node, field))
    crossing: dict = {}
    for (a, b), size in graph.edges.items():
        if names[a] != names[b]:  # what several operators of a block read is sent to it once
            key = a, order[names[b]]
            crossing[key] = max(crossing.get(key, 0), size)
    edges = defaultdict(int)
    for (a, block), size in crossing.items():
        edges[order[names[a]], block] += size
    return Graph(nodes, dict(edges))


def decoder_chain(graph: Graph, layers: int) -> Graph:
    """The operators from tokens to logits, or through an encoder, contracted: embedding, a block a
    layer, head (or the encoder's norm).

    Masks, angles and counts of tokens depend on no weight and are made by each stage for itself: an
    edge holds hidden states only.
    """
    last = max(i for i, node in enumerate(graph.nodes) if _layer(node.name) == layers - 1)

    def block_of(name, i):
        layer = _layer(name)
        if layer is not None:
            return f"block {layer}"
        return "head" if i > last else "embedding"

    made = contract(graph, block_of)
    rank = {node.name: i for i, node in enumerate(made.nodes)}
    order = ["embedding", *(f"block {i}" for i in range(layers)), "head"]
    edges = {(i, i + 1): made.edges[rank[a], rank[b]]
             for i, (a, b) in enumerate(itertools.pairwise(order))}
    edges[0, 1] = edges[1, 2]  # without masks and angles
    return Graph([made.nodes[rank[name]] for name in order], edges)


def _layer(name: str) -> int | None:
    found = _BLOCK.match(name)
    return int(found.group(1)) if found else None


def _variables(made):
    """Placeholders of a concrete function that stand for variables, with their bytes."""
    by_handle = {id(v.handle): v for v in made.variables}
    for outer, inner in made.graph.captures:
        if id(outer) in by_handle:
            variable = by_handle[id(outer)]
            yield inner, int(np.prod(variable.shape)) * variable.dtype.size


def _ids(tensors: Iterable) -> list:
    return [t.ref() for t in tensors]


def _bytes(reference) -> int:
    tensor = reference.deref()
    if tensor.dtype == tf.resource or not tensor.shape.is_fully_defined():
        return 0
    return int(np.prod(tensor.shape.as_list())) * tensor.dtype.size


def _flops(op) -> int:
    if op.type in _FREE or not op.outputs or not op.outputs[0].shape.is_fully_defined():
        return 0
    made = int(np.prod(op.outputs[0].shape.as_list()))
    if op.type in _PRODUCTS:
        transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
        return 2 * made * int(op.inputs[0].shape[-2 if transposed else -1])
    return made
