"""Run every benchmark and print one table in Markdown: ``python -m benchmarks [part of a file's name …]``."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path


def main(wanted: list[str]) -> int:
    """Print claim, measured ratio and bar of each; return 1 where one is over its bar, else 0."""
    over = 0
    print("| claim | measured | bar |\n|---|---|---|")
    for path in sorted(Path(__file__).parent.glob("bench_*.py")):
        if wanted and not any(word in path.stem for word in wanted):
            continue
        for claim, measured, bar in import_module(f"benchmarks.{path.stem}").run():
            print(f"| {claim} | {measured:.3g} | {bar:g} |", flush=True)
            over += measured > bar
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
