import numpy as np
import pytest
import tensorflow as tf

import strategies
from strategies.mirrored import Options
from tests.conftest import tiny_decoder
from tfspeed.engines import create
from tfspeed.errors import TfspeedError


def mirrored(replicas):
    return strategies.create("mirrored", {"mirrored": Options(replicas=replicas)})


@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
def test_rows_come_back_in_order(replicas):
    strategy = mirrored(replicas)
    with strategy.scope():
        model = strategy.apply(tiny_decoder())
    rows = np.arange(7, dtype=np.int32)[:, None] * np.ones((1, 3), np.int32)
    gathered = model.placement.gather(model.placement.shard(rows))
    np.testing.assert_array_equal(gathered[:7], rows)
    assert len(gathered) % replicas == 0


def test_every_replica_holds_a_copy_and_runs():
    strategy = mirrored(3)
    with strategy.scope():
        model = strategy.apply(tiny_decoder())
    variable = model.keras_model.weights[0].value
    assert [v.device[-5:] for v in variable.values] == ["CPU:0", "CPU:1", "CPU:2"]

    @tf.function
    def where(rows):
        return model.placement.run(
            lambda x: x * 0 + tf.distribute.get_replica_context().replica_id_in_sync_group, rows)

    ran = model.placement.gather(where(model.placement.shard(np.zeros((6, 1), np.int32))))
    np.testing.assert_array_equal(ran[:, 0], [0, 0, 1, 1, 2, 2])


def test_mirrored_retraces_nothing():
    strategy = mirrored(2)
    with strategy.scope():
        model = strategy.apply(tiny_decoder())
    engine = create("xla", model)
    list(engine.generate([[1], [2]], 4))
    traces = engine.traces
    list(engine.generate([[3, 4], [5]], 6))
    assert engine.traces == traces


def test_the_report_says_what_replicas_do_not_do():
    text = " ".join(mirrored(2).report())
    assert "never batch-1 latency" in text
    assert "2 replicas" in text


@pytest.mark.parametrize("replicas", [-1, 99])
def test_bad_replica_counts(replicas):
    with pytest.raises(TfspeedError, match=f"replicas={replicas}"):
        mirrored(replicas)


@pytest.mark.gpu
def test_gpus_are_used_where_there_are_any():
    assert all(device.startswith("GPU") for device in mirrored(0).devices)


def test_rows_name_the_devices_that_an_engine_uses():
    strategy = strategies.create("mirrored")
    with strategy.scope():
        model = strategy.apply(tiny_decoder())
    assert create("graph", model).devices == model.placement.devices
    assert create("litert", model).devices == ()  # it runs the model once
