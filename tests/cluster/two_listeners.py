"""What two real workers do with models that read a source, run by a supervisor.

    python two_listeners.py FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
import strategies
from tests.cluster.leading import led, multi_worker
from tests.models import seq2seq
from tfspeed.cluster.member import joined
from tfspeed.engines.sampling import Sampling

RUNS = [("whisper", "graph"), ("whisper", "litert"), ("t5", "graph"), ("bart", "xla")]
PROMPTS, NEW = [[5, 9, 2], [7], [3, 1]], 9  # with chunks of four: 1, 4, 4


def cases(engine) -> dict[str, list]:
    """Tokens of all that an engine must do alike on one device and on workers."""
    def generate(source, rows, **settings):
        return np.stack(list(engine.generate(PROMPTS[:rows], NEW, encoded=source, **settings)),
                        axis=1).tolist()

    heard = {rows: engine.encode(seq2seq.sources(engine.model, rows)) for rows in (1, 2, 3)}
    made = {f"{rows} rows": generate(source, rows) for rows, source in heard.items()}
    made["again, sampled"] = generate(heard[3], 3, sampling=Sampling(temperature=1.5, seed=11))
    made["no source"] = generate(None, 3)
    made["scored"] = engine.score(np.asarray([[5, 9, 2]] * 3), heard[3]).tolist()
    return made


def main(folder: Path) -> None:
    strategy = multi_worker()
    member = strategy.member
    joined()
    results = {}
    for shape, name in RUNS:
        engine, made = led(strategy, member, name, lambda shape=shape: seq2seq.tiny(shape), cases)
        results[f"{shape} {name}"] = made if member.is_chief else len(engine.sources)
    _, results["together"] = led(multi_worker("multi_worker+tensor_parallel"), member, "graph",
                                 lambda: seq2seq.tiny("t5"), cases)
    _, results["piped"] = led(strategies.create("dataflow"), member, "graph",
                              lambda: seq2seq.tiny("t5"), cases)
    (folder / f"{member.index}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
