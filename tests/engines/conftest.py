"""Which of the engines' tests are slow."""

import pytest

_COMPILED = {"sliding", "learned", "uneven", "alibi", "rnn", "lstm"}


def pytest_collection_modifyitems(items):
    """XLA compiles for ten seconds a family; `decoder`, `gru` and `uncached` stay quick."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if params.get("engine") == "xla" and params.get("model") in _COMPILED:
            item.add_marker(pytest.mark.slow)
