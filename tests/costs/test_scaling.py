import dataclasses

import pytest

from tests.conftest import TINY, tiny_decoder
from tests.scripts import forked
from tfspeed.costs import scaling
from tfspeed.costs.communication import Link
from tfspeed.costs.scaling import Machine
from tfspeed.errors import TfspeedError

FREE = Machine(1e9, 1e9, Link(0, 1e30))


def test_one_worker_reads_what_a_step_reads():
    model = tiny_decoder()
    found = scaling.tensor_parallel(model.config, FREE, 4)
    assert [p.workers for p in found] == [2**i for i in range(11)]
    assert found[0].work_s == pytest.approx(model.step_bytes(1, 0) / 1e9)
    assert found[0].speedup == 1


def test_the_parts_are_those_of_the_strategy():
    import strategies
    from strategies.tensor_parallel import Options
    config = {"num_heads": 9, "num_kv_heads": 3, "mlp_dim": 33}
    split = strategies.create("tensor_parallel", {"tensor_parallel": Options(replicas=2)}).apply(
        tiny_decoder(**config))
    found = scaling.tensor_parallel(dataclasses.replace(TINY, **config), FREE, 4)[1]
    assert found.work_s == pytest.approx(split.step_bytes(1, 0) / 2 / 1e9)


def test_sums_cost_their_latency():
    slow = Machine(1e9, 1e9, Link(1e-3, 1e30))
    found = scaling.tensor_parallel(TINY, slow, 4)
    assert found[1].exchange_s == pytest.approx(2 * TINY.num_layers * 2 * 1e-3)
    parallel = dataclasses.replace(TINY, parallel_residual=True)
    assert scaling.tensor_parallel(parallel, slow, 4)[1].exchange_s == found[1].exchange_s / 2
    assert found[1].speedup < 0.1  # it loses


def test_data_parallel_is_perfect_where_links_are_free():
    for points in (scaling.data_parallel(TINY, FREE, 4),
                   scaling.data_parallel_training(TINY, FREE, 4, 100)):
        assert [p.efficiency for p in points] == pytest.approx([1] * 11)


def test_training_exchanges_all_gradients():
    slow = Machine(1e9, 1e9, Link(0, 1e6))
    found = scaling.data_parallel_training(TINY, slow, 4, 100)[1]
    assert found.exchange_s == pytest.approx(4 * TINY.parameter_count / 1e6)
    assert found.work_s == pytest.approx(600 * TINY.parameter_count / 1e9)


def test_a_worker_that_does_nothing_is_refused():
    with pytest.raises(TfspeedError):
        Machine(0, 1, Link(0, 1))


@pytest.mark.parametrize("flag", ["--link_us=-1", "--batch=0", "--model=nothing.gguf"])
def test_mistakes(flag, tmp_path):
    code, _, err = forked.run("scaling.py", flag, cwd=tmp_path)
    assert code == 2
    assert err.startswith("error: ")
