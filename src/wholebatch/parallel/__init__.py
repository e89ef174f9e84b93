"""Several processes: joining torchrun's group, and launching one's own. The engine is torch.distributed."""

from wholebatch.parallel.join import init
from wholebatch.parallel.launch import launch
from wholebatch.parallel.lost import losses_named

__all__ = ["init", "launch", "losses_named"]
