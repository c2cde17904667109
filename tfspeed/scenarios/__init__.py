"""Applications, each with the metric that its field uses.

`SCENARIOS` maps a name to a module with `define_flags(shared)`, which makes its own flags (`shared`
goes into each `DEFINE`), and `run(flags)`, which does what they say and returns an exit code. The
modules import nothing slow before `run`.
"""

import importlib

SCENARIOS = {
    "dialogue": "tfspeed.scenarios.dialogue",
    "speech": "tfspeed.scenarios.speech",
    "translation": "tfspeed.scenarios.translation",
}


def module_of(name: str):
    return importlib.import_module(SCENARIOS[name])
