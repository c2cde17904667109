"""What two real workers do in test_workers.py: run by a supervisor, the chief writes the results.

    python two_workers.py FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.cluster.leading import led, multi_worker
from tests.conftest import tiny_decoder
from tests.strategies.test_contract import PROMPTS
from tests.training.test_loop import trained
from tfspeed.cluster.member import joined
from tfspeed.engines import ENGINES
from tfspeed.engines.sampling import Sampling
from tfspeed.errors import TfspeedError

NEW = 9  # with chunks of four: 1, 4, 4
TRAINING = {"tokens": 240, "checkpoint_seconds": 0}  # five batches of four, one window too few


def cases(engine) -> dict[str, list]:
    """Tokens of all that an engine must do alike on one device and on workers."""
    def generate(rows, **settings):
        return np.stack(list(engine.generate(PROMPTS[:rows], NEW, **settings)), axis=1).tolist()

    made = {"3 rows": generate(3), "5 rows": generate(5)}
    if engine.name != "graph":  # of all engines the one that compiles fastest
        return made
    made |= {"1 row": generate(1), "2 rows": generate(2)}
    made["sampled"] = generate(5, sampling=Sampling(temperature=1.5, seed=11))
    made["stopped"] = generate(5, stop_tokens=[row[2] for row in made["5 rows"][:4]])
    made["all stopped"] = generate(5, stop_tokens=[row[1] for row in made["5 rows"]])
    for limit in (1, 3, 5):  # whoever asked goes away within a chunk, and at its end
        for count, _ in enumerate(engine.generate(PROMPTS, NEW), 1):
            if count == limit:
                break
    made["after leaving"] = generate(5)
    return made


def main(folder: Path) -> None:
    strategy = multi_worker()
    member = strategy.member
    joined()
    results = {}
    for name in ENGINES:
        _, results[name] = led(strategy, member, name, tiny_decoder, cases)

    def spread(engine):
        results["score"] = np.asarray(engine.score(np.asarray([PROMPTS[2]]))).tolist()
        return cases(engine)

    _, results["together"] = led(multi_worker("multi_worker+tensor_parallel"), member, "graph",
                                 tiny_decoder, spread)
    with strategy.scope():
        _, result = trained(strategy.apply(tiny_decoder()),
                            checkpoint=str(folder / f"checkpoint{member.index}"), **TRAINING)
    results["losses"] = result["losses"]
    results["shared"] = member.share({"worker": member.index, "text": "ä" * (50 * member.index)})
    try:
        member.agree({"same": "1", "weights": f"digest {member.index}"})
    except TfspeedError as error:
        results["refused"] = str(error)
    (folder / f"{member.index}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
