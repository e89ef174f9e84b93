"""Draw docs/images/schedules.png, the picture of docs/plots.md."""

from __future__ import annotations

from pathlib import Path

import wholebatch as wb

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "schedules.png"

if __name__ == "__main__":
    shapes = {
        "cosine": wb.CosineScheduler(20, base_lr=0.3, final_lr=0.01, warmup_steps=5),
        "square root": wb.SquareRootScheduler(0.3),
        "multi-factor": wb.MultiFactorScheduler([10, 20], factor=0.5, base_lr=0.3),
    }
    wb.plot(30, shapes, "epoch", "learning rate", title="Three schedules", path=PICTURE)
