"""Breaks one process of ``wholebatch train --processes N`` from within: Python imports this file when it starts.

The environment variable BREAK names the way.
"""

import os

_way, _rank = os.environ.get("BREAK"), os.environ.get("RANK")

if _way == "data" and _rank == "1":
    from wholebatch.data import BatchLoader

    def _windows(self, *arguments, **options):
        raise OSError("the disk of rank one is gone")

    BatchLoader.windows = _windows

if _way == "observer" and _rank == "0":
    from wholebatch.loop import LastStep

    def _step(self, progress):
        if progress.step == 3:
            raise OSError("the observer's connection broke")

    LastStep.step = _step
