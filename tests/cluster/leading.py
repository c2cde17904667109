"""What the processes of `two_workers.py` and `two_listeners.py` share: who leads, who follows."""

import strategies
from strategies.multi_worker import Options
from tfspeed.engines import create

CHUNK = 4  # tokens between two gatherings


def multi_worker(strategy: str = "multi_worker"):
    """A strategy with multi_worker in it."""
    return strategies.create(strategy, {"multi_worker": Options(chunk=CHUNK)})


def led(strategy, member, name: str, model, ask):
    """The engine `name` of a model under a strategy, and what `ask(engine)` gives: the chief's; the
    others serve it meanwhile, and have None."""
    with strategy.scope():
        engine = create(name, strategy.apply(model()))
    if not member.is_chief:
        engine.serve()
        return engine, None
    given = ask(engine)
    member.tell(None)
    return engine, given
