"""An engine around another: all that it does not do itself is the other's."""

from tfspeed.engines.base import Engine


class Wrapping(Engine):
    """Attributes:
        inner: the engine inside.
    """

    def __init__(self, inner: Engine):
        self.inner = inner  # first: `traces` is the inner engine's
        super().__init__(inner.name, inner.model)
        self.profile_source, self.notes = inner.profile_source, list(inner.notes)

    @property
    def traces(self):
        return self.inner.traces

    @traces.setter
    def traces(self, value):
        self.inner.traces = value

    @property
    def takes_source(self):
        return self.inner.takes_source

    @property
    def weights_bytes(self):
        return self.inner.weights_bytes

    @property
    def dtype(self):
        return self.inner.dtype

    @property
    def devices(self):
        return self.inner.devices

    def step_bytes(self, batch, context):
        return self.inner.step_bytes(batch, context)

    def encode(self, source):
        return self.inner.encode(source)

    def score(self, tokens, encoded=None):
        return self.inner.score(tokens, **given(encoded))

    def profile(self, prompts):
        return self.inner.profile(prompts)

    def start_counting(self):
        self.inner.start_counting()

    def counted(self):
        return self.inner.counted()


def given(encoded) -> dict:
    """What a call is told of a source: engines that read none know no such argument."""
    return {} if encoded is None else {"encoded": encoded}
