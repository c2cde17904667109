"""Two real workers, over TensorFlow's collectives, give what one device gives."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.two_workers import TRAINING, cases
from tests.conftest import tiny_decoder
from tests.strategies.test_contract import PROMPTS
from tests.training.test_loop import trained
from tfspeed.cluster import addresses
from tfspeed.cluster.supervisor import Supervisor
from tfspeed.engines import ENGINES, create


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the chief wrote, and what the other one did."""
    folder = tmp_path_factory.mktemp("workers")
    code = Supervisor(lambda: addresses.local(2, "127.0.0.1"), [0, 1],
                      [str(Path(__file__).with_name("two_workers.py")), str(folder)],
                      "127.0.0.1", join_s=300, restarts=0, say=print).run()
    assert code == 0
    chief, other = (json.loads((folder / f"{i}.json").read_text()) for i in (0, 1))
    return {**chief, "other": other, "files": [
        (folder / f"checkpoint{i}" / "training.npz").exists() for i in (0, 1)]}


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_gives_the_tokens_of_one_device(results, engine):
    expected = cases(create(engine, tiny_decoder()))
    assert expected.keys() == results[engine].keys()
    for case, tokens in expected.items():
        assert results[engine][case] == tokens, case


def test_a_model_spread_over_workers_gives_them_too(results):
    alone = create("graph", tiny_decoder())
    for case, tokens in cases(alone).items():
        assert results["together"][case] == tokens, case
    np.testing.assert_allclose(results["score"], alone.score(np.asarray([PROMPTS[2]])), atol=1e-4)


def test_training_gives_the_losses_of_one_device_and_the_chief_writes(results):
    _, alone = trained(tiny_decoder(), **{k: v for k, v in TRAINING.items()})
    np.testing.assert_allclose(results["losses"], alone["losses"], rtol=1e-4)
    assert results["other"]["losses"] == results["losses"]
    assert results["files"] == [True, False]


def test_messages_and_the_handshake(results):
    assert results["shared"] == results["other"]["shared"]
    assert results["shared"][1] == {"worker": 1, "text": "ä" * 50}
    for refused in (results["refused"], results["other"]["refused"]):
        assert "worker 1 (127.0.0.1:" in refused
        assert "differs from the chief in weights" in refused
        assert "weights='digest 0 (chief), digest 1'" in refused
