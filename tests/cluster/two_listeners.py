"""What two real workers do with models that read a source, run by a supervisor.

    python two_listeners.py FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
import strategies
from strategies.multi_worker import Options
from tests.models import seq2seq
from tfspeed.cluster.member import joined
from tfspeed.engines import create
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
    strategy = strategies.create("multi_worker", {"multi_worker": Options(chunk=4)})
    member = strategy.member
    joined()
    results = {}
    for shape, name in RUNS:
        with strategy.scope():
            engine = create(name, strategy.apply(seq2seq.tiny(shape)))
        if member.is_chief:
            results[f"{shape} {name}"] = cases(engine)
            member.tell(None)
        else:
            engine.serve()
            results[f"{shape} {name}"] = len(engine.sources)
    both = strategies.create("multi_worker+tensor_parallel", {"multi_worker": Options(chunk=4)})
    with both.scope():
        engine = create("graph", both.apply(seq2seq.tiny("t5")))
    if member.is_chief:
        results["together"] = cases(engine)
        member.tell(None)
    else:
        engine.serve()
    (folder / f"{member.index}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
