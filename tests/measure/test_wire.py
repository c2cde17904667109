"""What TensorFlow's collectives really send, against the formulas of `costs.communication`."""

import socket
import threading

import pytest

from tests.workers import run_workers
from tfspeed.costs import communication
from tfspeed.errors import TfspeedError
from tfspeed.measure.wire import Wire

SIZE = 8 << 20
TIMES = 4

# Worker 0 counts; all have sent everything when its pause ends.
PROGRAM = f"""
from tfspeed.measure.wire import Wire
SIZE, TIMES = {SIZE}, {TIMES}
count = strategy.num_replicas_in_sync

def replica(function):
    return tf.function(lambda *args: strategy.run(function, args=args))

def context():
    return tf.distribute.get_replica_context()

def values(elements):
    return strategy.experimental_distribute_values_from_function(
        lambda c: tf.random.normal((elements,)))

reduce = replica(lambda x: context().all_reduce("SUM", tf.identity(x))[:1])
gather = replica(lambda x: context().all_gather(tf.identity(x), axis=0)[:1])
whole, part = values(SIZE // 4), values(SIZE // 4 // count)

def create():
    with strategy.scope():
        tf.Variable(tf.zeros((SIZE // 4,)))

found = {{}}
for name, call in (("all_reduce", lambda: reduce(whole)), ("all_gather", lambda: gather(part)),
                   ("broadcast", create)):
    call()
    reduce(values(4))  # waits for all
    found[name] = []
    for _ in range(TIMES):
        with Wire() as wire:
            time.sleep(0.1)
            call()
            time.sleep(0.3)
        found[name].append(wire.sent_bytes)
        reduce(values(4))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def sent():
    return run_workers(2, PROGRAM)[0]


@pytest.mark.parametrize("name", ["all_reduce", "all_gather", "broadcast"])
def test_collectives_send_what_the_formulas_say(sent, name):
    formula = getattr(communication, name)(2, SIZE).total_bytes
    # Whoever else talks over loopback meanwhile is counted as well: never less, now and then more.
    assert min(sent[name]) == pytest.approx(formula, rel=0.02)


def test_a_message_from_point_to_point():
    server = socket.create_server(("127.0.0.1", 0))
    with socket.create_connection(server.getsockname()) as sender, server.accept()[0] as receiver:
        reader = threading.Thread(target=lambda: [None for _ in iter(
            lambda: receiver.recv(1 << 20), b"")])
        reader.start()
        with Wire() as wire:
            sender.sendall(bytes(SIZE))
            sender.shutdown(socket.SHUT_WR)
            reader.join()
    assert wire.sent_bytes == pytest.approx(communication.point_to_point(SIZE).sent_bytes,
                                            rel=0.02)
    assert wire.sent_packets > 0
    server.close()


def test_an_interface_that_is_none():
    with pytest.raises(TfspeedError, match="interface='nowhere'"), Wire("nowhere"):
        pass
