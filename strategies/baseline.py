"""Nothing is changed: the model as it was loaded, which every other row is compared with.

Source: none needed. It is the float32 reference for speed and for quality.
"""

from strategies.base import Strategy


class Baseline(Strategy):
    name = "baseline"

    def apply(self, model, data=None):
        return model
