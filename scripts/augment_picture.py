"""Draw docs/images/augment.png: synthetic colour images and digits under each transform, six draws of it."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch

from wholebatch import data

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "augment.png"
DRAWS = 6
ROWS = {
    "as stored": None,
    "RandomCrop(padding=4)": data.RandomCrop(padding=4),
    'RandomCrop(mode="reflect")': data.RandomCrop(padding=6, mode="reflect"),
    "RandomResizedCrop()": data.RandomResizedCrop(),
    "HorizontalFlip()": data.HorizontalFlip(),
    "ShiftRotate(3, 20)": data.ShiftRotate(3, 20),
    "ColorJitter(0.4, 0.4, 0.4, 0.1)": data.ColorJitter(0.4, 0.4, 0.4, 0.1),
    "Cutout(10)": data.Cutout(10),
    "MixUp(alpha=1)": data.MixUp(2, alpha=1.0),
    "CutMix()": data.CutMix(2),
}


def images() -> torch.Tensor:
    """A digit made large in colour, and a disc on a gradient: uint8, (2, 3, 32, 32)."""
    digit = data.digits("train").inputs[3, 0].float().repeat_interleave(4, 0).repeat_interleave(4, 1) / 16
    tint = torch.tensor([0.2, 0.5, 0.9]).view(3, 1, 1)
    first = digit * (1 - tint) + tint
    y, x = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
    second = torch.stack([x, y, 1 - x])
    second[:, (x - 0.4) ** 2 + (y - 0.6) ** 2 < 0.06] = torch.tensor([0.95, 0.75, 0.1]).view(3, 1)
    return (torch.stack([first, second]) * 255).round().to(torch.uint8)


def drawn(transform: object, stored: torch.Tensor) -> torch.Tensor:
    """``DRAWS`` images under one transform, of the two images in turn."""
    numbers = torch.arange(DRAWS)
    batch = stored[numbers % 2]
    if transform is None:
        return batch
    if isinstance(transform, data.Mix):
        plan = transform.plan(numbers, seed=3, epoch=0, place=0)
        labels = numbers % 2
        return transform.apply((batch, labels), (batch[plan.partners], labels[plan.partners]), plan)[0]
    return transform(batch, seed=4, epoch=0, indices=numbers)  # type: ignore[operator,no-any-return]


def main() -> None:
    """Write the picture."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    stored = images()
    figure, axes = pyplot.subplots(len(ROWS), DRAWS, figsize=(7.6, 8.6), dpi=110)
    for row, (name, transform) in zip(axes, ROWS.items(), strict=True):
        for place, image in zip(row, drawn(transform, stored), strict=True):
            place.imshow(image.permute(1, 2, 0).float().clamp(0, 255) / 255, interpolation="nearest")
            place.set_axis_off()
        row[0].text(-0.12, 0.5, name, transform=row[0].transAxes, ha="right", va="center", family="monospace", size=9)
    figure.subplots_adjust(left=0.36, right=0.995, top=0.995, bottom=0.005, wspace=0.06, hspace=0.06)
    figure.savefig(PICTURE)
    print(f"{PICTURE.name}: {PICTURE.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
