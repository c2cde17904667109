"""Short training after a change of structure: the student learns the original's distributions.

`train` is the loop (`loop`): the loss (`loss`) and its gradients run compiled on every replica,
Adam (`adam`) takes them. `lora` puts adapters in place of the matrices, `checkpoint` makes a run
survive an interruption, `text` finds or writes what is read.
"""

from tfspeed.training.loop import train
from tfspeed.training.options import TrainOptions

__all__ = ["TrainOptions", "train"]
