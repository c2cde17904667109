"""Workers over encoder–decoders: each encodes the sources of its own rows."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.two_listeners import PROMPTS, RUNS, cases
from tests.models.seq2seq import sources, tiny
from tfspeed.cluster import addresses
from tfspeed.cluster.supervisor import Supervisor
from tfspeed.engines import create
from tfspeed.engines.workers import WorkersEngine
from tfspeed.errors import TfspeedError


class Threads:
    """Members of a cluster that are threads of this process."""

    count = 2

    def __init__(self, index, shared, barrier):
        self.index, self._shared, self._barrier = index, shared, barrier

    def share(self, message):
        self._shared[self.index] = message
        self._barrier.wait(60)
        everyone = list(self._shared)
        self._barrier.wait(60)
        return everyone

    def all_gather(self, values):
        return np.stack(self.share(values))

    def tell(self, message=None):
        return json.loads(self.share(json.dumps(message))[0])

    def agree(self, facts):
        self.share(facts)


@pytest.fixture
def pair():
    """The chief's engine, and the other's, which is served by a thread."""
    shared, barrier = [None, None], threading.Barrier(2)
    members = [Threads(i, shared, barrier) for i in range(2)]
    model, made = tiny("whisper"), [None, None]

    def work(index):
        made[index] = WorkersEngine(create("litert", model), members[index], 4)
        if index:
            made[index].serve()

    thread = threading.Thread(target=work, args=(1,))
    thread.start()
    work(0)
    yield made
    members[0].tell(None)
    thread.join(60)


def test_rows_and_their_sources_are_shared_out(pair):
    engine = pair[0]
    heard = sources(engine.model, 3)
    alone = engine.inner

    def tokens(made):
        return np.stack(list(made.generate(PROMPTS, 6, encoded=made.encode(heard))), 1)

    np.testing.assert_array_equal(tokens(engine), tokens(alone))
    assert len(pair[1].sources) == 1
    tokens(engine)
    assert len(pair[1].sources) == 1  # what nobody holds is forgotten
    with pytest.raises(TfspeedError, match="log-mel"):
        engine.encode(heard[0])  # told before another worker hears of it
    running = engine.generate(PROMPTS, 6)
    next(running)
    with pytest.raises(TfspeedError, match="one generation"):
        engine.encode(heard)
    running.close()


@pytest.mark.slow
def test_real_workers_give_what_one_device_gives(tmp_path):
    code = Supervisor(lambda: addresses.local(2, "127.0.0.1"), [0, 1],
                      [str(Path(__file__).with_name("two_listeners.py")), str(tmp_path)],
                      "127.0.0.1", join_s=300, restarts=0, say=print).run()
    assert code == 0
    chief, other = (json.loads((tmp_path / f"{i}.json").read_text()) for i in (0, 1))
    wanted = {f"{shape} {name}": cases(create(name, tiny(shape))) for shape, name in RUNS}
    # Each worker has some heads of all rows, or some layers of either side.
    wanted["together"] = wanted["piped"] = wanted["t5 graph"]
    for run, made in wanted.items():
        for case, tokens in made.items():
            np.testing.assert_allclose(chief[run][case], tokens, atol=1e-3,
                                       err_msg=f"{run}, {case}")
    for shape, name in RUNS:
        assert other[f"{shape} {name}"] == 2  # those that the chief held to the end
