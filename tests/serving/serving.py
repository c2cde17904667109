"""What the tests of serving share: requests that are run to their end."""

import threading

from tfspeed.serving.request import Request


class Answer:
    """A request and what came of it. `wait` gives the tokens."""

    def __init__(self, worker, prompt, max_tokens, on_update=None, **kwargs):
        self.updates, self._over, self._on_update = [], threading.Event(), on_update
        self.request = Request(prompt, max_tokens, tell=self._tell, **kwargs)
        worker.submit(self.request)

    def _tell(self, update):
        self.updates.append(update)
        if update.reason:
            self._over.set()
        if self._on_update:
            self._on_update(update)

    def wait(self):
        assert self._over.wait(120)
        return self.tokens

    @property
    def tokens(self):
        return [t.token for u in self.updates for t in u.tokens]

    @property
    def reason(self):
        return self.updates[-1].reason

    @property
    def text(self):
        return "".join(u.text for u in self.updates)
