import subprocess
import sys

import pytest

import strategies
from tfspeed.errors import TfspeedError


@pytest.mark.parametrize(("names", "words"), [
    ("speedup", "strategy='speedup'"), ("", "strategy=''"), ("baseline+", "strategy=''"),
    ("baseline+baseline", "once"), ("baseline,mirrored", "baseline,mirrored"),
])
def test_bad_names(names, words):
    with pytest.raises(TfspeedError, match=words):
        strategies.create(names)


def test_a_strategy_is_imported_only_when_it_is_asked_for():
    code = ("import sys, strategies; strategies.find('baseline'); "
            "print('strategies.mirrored' in sys.modules, 'tensorflow_model_optimization' in "
            "sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("names", ["mirrored+multi_worker", "dataflow+mirrored",
                                   "quantize+multi_worker+dataflow"])
def test_one_strategy_decides_what_runs_where(names):
    with pytest.raises(TfspeedError, match="One strategy decides"):
        strategies.create(names)
