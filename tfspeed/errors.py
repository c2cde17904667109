"""The one error that a user can cause and a script prints without a traceback."""


class TfspeedError(ValueError):
    """Something the user can mend: a bad option, a missing or broken file, an unknown model.

    The message is built the same way everywhere: the rule, what was received, what to do.
    Scripts print it and exit with status 2.
    """

    def __init__(self, rule: str, *, hint: str = "", **received: object):
        parts = [rule.rstrip()]
        if received:
            parts.append("Received: " + ", ".join(f"{k}={v!r}" for k, v in received.items()) + ".")
        if hint:
            parts.append(hint.rstrip())
        super().__init__(" ".join(parts))
