import numpy as np
import pytest
import tensorflow as tf

from tests.scripts import forked
from tfspeed import matmul_job
from tfspeed.costs import communication
from tfspeed.devices import mirrored_strategy


def strategy(replicas=3):
    return mirrored_strategy([f"CPU:{i}" for i in range(replicas)])


@pytest.mark.parametrize("split", matmul_job.SPLITS)
def test_a_split_product_is_the_product(split):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((10, 7), np.float32), rng.standard_normal((7, 11), np.float32)
    product = matmul_job.SplitProduct(strategy(), a, b, split)  # nothing divides by 3
    np.testing.assert_allclose(product().numpy(), a @ b, atol=1e-5)
    np.testing.assert_allclose(product().numpy(), a @ b, atol=1e-5)
    collective = communication.all_reduce if split == "inner" else communication.all_gather
    assert product.cost == collective(3, 4 * 10 * 11)


@pytest.mark.parametrize(("split", "shapes"), [
    ("rows", [(4, 7), (7, 11)]), ("columns", [(10, 7), (7, 4)]), ("inner", [(10, 3), (3, 11)])])
def test_each_replica_has_its_share_only(split, shapes):
    a, b = np.ones((10, 7), np.float32), np.ones((7, 11), np.float32)
    made = strategy()
    product = matmul_job.SplitProduct(made, a, b, split)
    for operand, shape in zip(product._operands, shapes, strict=True):
        assert [v.shape for v in made.experimental_local_results(operand)] == [shape] * 3


def test_one_replica_is_no_special_case():
    a = np.eye(5, dtype=np.float32)
    product = matmul_job.SplitProduct(tf.distribute.get_strategy(), a, 2 * a, "rows")
    np.testing.assert_array_equal(product().numpy(), 2 * a)
    assert product.cost.sent_bytes == 0


def test_comparison():
    found = matmul_job.compare(strategy(2), 64, "columns", 3, single_cores=1, most=2)
    assert len(found.single_s) == len(found.split_s) == 3
    assert found.difference < 1e-5
    exchange = found.cost.seconds(found.link)
    single = np.median(found.single_s)
    assert found.expected_speedup == pytest.approx(single / (single / 2 + exchange))
    assert found.link.bytes_per_s > 0


def test_the_script(tmp_path):
    code, out, err = forked.run("matmul.py", "--size=60", "--devices=2", "--repetitions=3",
                                "--split=inner", cwd=tmp_path)
    assert code == 0, err
    assert err == ""
    assert "one device, 1 core" in out
    assert "speed-up:" in out
    assert "sent by each device in 2 messages" in out


@pytest.mark.parametrize("flag", ["--split=diagonal", "--size=0", "--devices=-1", "--devices=5000",
                                  "--cores_for_baseline=9999"])
def test_mistakes(flag, tmp_path):
    code, out, err = forked.run("matmul.py", flag, cwd=tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "Traceback" not in err
