"""Several processes: joining torchrun's group, launching one's own, summing gradients. torch.distributed does it."""

from wholebatch.parallel.choose import adopt, engine, step_for
from wholebatch.parallel.join import init
from wholebatch.parallel.launch import launch
from wholebatch.parallel.lost import losses_named

__all__ = ["adopt", "engine", "init", "launch", "losses_named", "step_for"]
