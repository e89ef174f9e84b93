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

if _way == "slow step" and _rank is not None:
    import pathlib
    import time

    from wholebatch.loop import LastStep

    def _sleep(self, progress):
        pathlib.Path("slow").touch()
        until = time.monotonic() + 60  # what a single C++ call would be, but that signals are seen
        while time.monotonic() < until:
            time.sleep(0.1)

    LastStep.step = _sleep
