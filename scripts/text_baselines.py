"""What simple models reach on the embedded text: ``python scripts/text_baselines.py``.

Bits per byte of the test part, cut as the recipe does. The counts of bytes (and of pairs of them) are those of the
training part, each with one added so that none is 0.
"""

from __future__ import annotations

import lzma
import math

import torch
from torch import Tensor

from wholebatch import data


def pairs(split: str) -> Tensor:
    """Return how often each byte follows each other, (before, byte), float64."""
    text = data.text(split, length=128)
    real = text.targets >= 0
    return torch.bincount(text.inputs[real] * 256 + text.targets[real], minlength=1 << 16).view(256, 256).double()


def main() -> None:
    """Print bits per byte."""
    train, test = pairs("train"), pairs("test")
    one, two = train.sum(0) + 1, train + 1
    of_one, of_two = (one / one.sum()).log2(), (two / two.sum(1, keepdim=True)).log2()
    print(f"uniform                 {math.log2(256):.3f}")
    print(f"frequencies of bytes    {float(-(test.sum(0) * of_one).sum() / test.sum()):.3f}")
    print(f"frequencies of pairs    {float(-(test * of_two).sum() / test.sum()):.3f}")
    targets = [data.text(split, length=128).targets for split in ("train", "test")]
    known, new = (bytes(part[part >= 0].tolist()) for part in targets)
    more = len(lzma.compress(known + new, preset=9)) - len(lzma.compress(known, preset=9))
    print(f"xz behind the training  {8 * more / len(new):.3f}")


if __name__ == "__main__":
    main()
