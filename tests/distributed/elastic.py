"""A process of an elastic run: trains the small run of ``resuming`` as torchrun's environment says.

Arguments: the run folder, seconds per step, the file in which rank 0 leaves the result.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
import warnings
from pathlib import Path

import resuming
import torch
from torch import nn

import wholebatch as wb


def main(folder: str, pause: str, result: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    rank = wb.parallel.init().rank
    slow = resuming.At(rank, dict.fromkeys(range(resuming.STEPS + 1), lambda: time.sleep(float(pause))))
    made: nn.Module = resuming.model()
    weights, records = resuming.train(folder, made, checkpoint_every="1 steps", observers=[slow])
    if rank == 0:
        world = [os.environ[name] for name in ("WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")]
        Path(result).write_bytes(pickle.dumps((weights, records, world)))


if __name__ == "__main__":
    main(*sys.argv[1:])
