"""Graphs of operators, from traces: what they count, and what they become when contracted."""

import pytest
import tensorflow as tf

from tests.conftest import TINY, tiny_decoder
from tfspeed.dataflow import graph


def test_a_product_and_its_bytes():
    weights = tf.Variable(tf.ones((3, 5)))
    found, _ = graph.trace(lambda x: tf.nn.relu(x @ weights), tf.TensorSpec((2, 3)))
    by_kind = {node.name.split("/")[-1]: node for node in found.nodes}
    assert by_kind["matmul"].flops == 2 * 2 * 3 * 5
    assert by_kind["matmul"].moved_bytes == 4 * (6 + 15 + 10)
    assert by_kind["Relu"].flops == 10
    assert sum(node.weight_bytes for node in found.nodes) == 60
    names = [node.name.split("/")[-1] for node in found.nodes]
    assert found.edges[names.index("matmul"), names.index("Relu")] == 40


def test_a_decoder_becomes_a_chain_with_hidden_states_on_its_edges():
    model = tiny_decoder()
    rows, length = 3, 7

    def read(tokens, lengths):
        return model.prefill(tokens, lengths, model.initial_state(rows, 16))[0]

    operators, _ = graph.trace(read, tf.TensorSpec((rows, length), tf.int32),
                               tf.TensorSpec((rows,), tf.int32))
    chain = graph.decoder_chain(operators, TINY.num_layers)
    assert [node.name for node in chain.nodes] == ["embedding", "block 0", "block 1", "head"]
    assert chain.is_chain
    hidden = rows * length * TINY.hidden_dim * 4
    assert chain.edges == {(0, 1): hidden, (1, 2): hidden, (2, 3): hidden}
    assert sum(n.operators for n in chain.nodes) == len(operators.nodes)
    block = model.keras_model.blocks[0]
    matrices = sum(int(v.shape[0]) * int(v.shape[1]) for v in block.weights if len(v.shape) == 2)
    assert chain.nodes[1].flops > 2 * rows * length * matrices
    assert chain.nodes[1].flops < 4 * rows * length * matrices  # attention is small
    assert chain.nodes[1].weight_bytes == sum(4 * v.numpy().size for v in block.weights)
    assert chain.nodes[3].flops >= 2 * rows * TINY.hidden_dim * TINY.vocabulary_size


def test_contraction_sends_a_value_once():
    nodes = [graph.Node("a", flops=1), graph.Node("b1", flops=2), graph.Node("b2", flops=4)]
    made = graph.contract(graph.Graph(nodes, {(0, 1): 8, (0, 2): 8, (1, 2): 3}),
                          lambda name, i: name[0])
    assert [(n.name, n.flops, n.operators) for n in made.nodes] == [("a", 1, 1), ("b", 6, 2)]
    assert made.edges == {(0, 1): 8}


def test_the_roofline_takes_the_longer_of_both():
    made = graph.Graph([graph.Node("a", flops=100, moved_bytes=10),
                        graph.Node("b", flops=10, moved_bytes=100)], {})
    made.roofline(flops_per_s=10, bytes_per_s=5)
    assert [node.seconds for node in made.nodes] == pytest.approx([10, 20])
