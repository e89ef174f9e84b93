"""Random crops: a window of the padded image, or a window of random size brought to one size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wholebatch.core.errors import DataError
from wholebatch.data.keyed import Keyed, below

_RATIOS = 4096  # steps of the table of aspect ratios
_TRIES = 10  # windows drawn until one fits, as torchvision does


class RandomCrop(Keyed):
    """Pad every image on all sides and cut a window out of it, at a place of its own.

    Bytes stay bytes. With the usual ``padding=4`` at 32 x 32 pixels it is the augmentation of K. He et al., Deep
    Residual Learning for Image Recognition, 2015, section 4.2.

    Args:
        size: height and width of the window, or one number for both; None is that of the images.
        padding: pixels added on each side.
        mode: what they are: "constant" (``fill``), or "reflect" (the image mirrored at its edge).
        fill: value of the padding.
        field: place or key of the images in the batch; a batch that is a tensor is the images.

    Raises:
        DataError: a negative padding, an unknown mode, or a window larger than the padded image.

    >>> crop = RandomCrop(padding=2)
    >>> crop(torch.ones(5, 3, 8, 8), seed=0, epoch=0, indices=torch.arange(5)).shape
    torch.Size([5, 3, 8, 8])
    """

    number, columns = 1, 2

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        padding: int = 4,
        mode: str = "constant",
        fill: float = 0,
        field: Any = 0,
    ) -> None:
        if padding < 0:
            raise DataError(f"RandomCrop pads with a number of pixels, 0 or more; got {padding}")
        if mode not in ("constant", "reflect"):
            raise DataError(f"RandomCrop pads with mode 'constant' or 'reflect', got {mode!r}")
        self.size, self.padding, self.mode, self.fill, self.field = _pair(size), padding, mode, fill, field

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return windows of ``images`` at ``draws``: top, left."""
        height, width = self.size or images.shape[2:]
        padded = _padded(images, self.padding, self.mode, self.fill)
        rows, columns = padded.shape[2] - height + 1, padded.shape[3] - width + 1
        if rows < 1 or columns < 1:
            raise DataError(
                f"RandomCrop cannot cut {height} x {width} pixels out of images of {images.shape[2]} x "
                f"{images.shape[3]} with padding {self.padding}; lower size or raise padding"
            )
        return windows(padded, below(draws[:, 0], rows), below(draws[:, 1], columns), height, width)


class RandomResizedCrop(Keyed):
    """Cut a window of random area and shape out of every image and bring it to one size.

    C. Szegedy et al., Going Deeper with Convolutions, 2014, with torchvision's amounts: the area is uniform, the
    logarithm of the aspect ratio (width to height) too; of ten windows the first that fits is taken, else the largest
    in the middle. Bilinear; where images are at least 1.5 times as large as the result, several points are
    averaged per pixel. The dtype stays: bytes are rounded.

    Args:
        size: height and width of the result, or one number for both; None is that of the images.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width to height.
        field: place or key of the images in the batch.

    Raises:
        DataError: shares outside (0, 1], or ratios that are not positive, or not in order.
    """

    number, columns = 2, 4 * _TRIES

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        field: Any = 0,
    ) -> None:
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise DataError(f"RandomResizedCrop takes scale=(smallest, largest) share, in (0, 1]; got {scale}")
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1] < math.inf:
            raise DataError(f"RandomResizedCrop takes ratio=(smallest, largest) width to height; got {ratio}")
        self.size, self.scale, self.ratio, self.field = _pair(size), tuple(scale), tuple(ratio), field
        low, high = math.log(ratio[0]), math.log(ratio[1])
        steps = [math.exp(low + (high - low) * (step + 0.5) / _RATIOS) for step in range(_RATIOS)]
        self._ratios = torch.tensor(steps, dtype=torch.float64)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the windows that :meth:`boxes` says, all of one size."""
        height, width = self.size or images.shape[2:]
        return resized(images, self.boxes(draws, images.shape[2], images.shape[3]), height, width)

    def boxes(self, draws: Tensor, height: int, width: int) -> Tensor:
        """Return top, left, height and width of each window in images of ``height`` x ``width``, int64, (N, 4)."""
        draw = draws.double().view(-1, _TRIES, 4)
        low, high = self.scale
        area = (draw[..., 0] * (high - low) + low) * (height * width)
        ratio = self._ratios[(draw[..., 1] * _RATIOS).long()]
        wide, tall = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
        first = fits.to(torch.uint8).argmax(1, keepdim=True)  # the first of several
        any_fits, whole = fits.any(1, keepdim=True), self._largest(height, width)
        tall = torch.where(any_fits, tall.gather(1, first), whole[0])
        wide = torch.where(any_fits, wide.gather(1, first), whole[1])
        top, left = below(draw[..., 2].gather(1, first), height - tall + 1), (width - wide + 1)
        left = below(draw[..., 3].gather(1, first), left)
        top = torch.where(any_fits, top, (height - tall) // 2)
        left = torch.where(any_fits, left, (width - wide) // 2)
        return torch.cat([top, left, tall, wide], 1)

    def _largest(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the largest window of an allowed ratio."""
        low, high = self.ratio
        if width / height < low:
            return min(height, round(width / low)), width
        if width / height > high:
            return height, min(width, round(height * high))
        return height, width


def windows(images: Tensor, tops: Tensor, lefts: Tensor, height: int, width: int) -> Tensor:
    """Return ``images[i, :, tops[i] : tops[i] + height, lefts[i] : lefts[i] + width]`` for every i: new memory.

    Every window of the memory is one row of an overlapping view of it, so that one index per image copies them all.
    """
    images = images.contiguous()
    samples, channels, rows, columns = images.shape
    if not samples:
        return images.new_empty((0, channels, height, width))
    last = (channels - 1) * rows * columns + (height - 1) * columns + width - 1
    view = images.as_strided((images.numel() - last, channels, height, width), (1, rows * columns, columns, 1))
    starts = torch.arange(samples) * (channels * rows * columns) + tops * columns + lefts
    return view.index_select(0, starts.to(images.device, non_blocking=True))


def resized(images: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Return each image's box (top, left, height, width), bilinearly brought to ``height`` x ``width``.

    A pixel's value is that of ``torch.nn.functional.interpolate(box, mode="bilinear")``; points outside the box count
    as its edge.
    """
    samples, channels, rows, columns = images.shape
    if not samples:
        return images.new_empty((0, channels, height, width))
    kind = images.dtype if images.is_floating_point() and images.dtype.itemsize >= 4 else torch.float32
    times = max(1, round(max(rows / height, columns / width)))
    box = boxes.to(images.device, non_blocking=True).to(kind)
    y = _places(box[:, 0:1], box[:, 2:3], height * times, rows)
    x = _places(box[:, 1:2], box[:, 3:4], width * times, columns)
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1)
    new = F.grid_sample(images.to(kind), grid, mode="bilinear", padding_mode="border", align_corners=False)
    if times > 1:
        points = [new[:, :, i::times, j::times] for i in range(times) for j in range(times)]
        total = points[0].clone()
        for point in points[1:]:  # in this order, whatever the batch
            total.add_(point)
        new = total.div_(times * times)
    return new if images.is_floating_point() else new.round_().clamp_(0, _top(images.dtype)).to(images.dtype)


def _places(start: Tensor, length: Tensor, count: int, pixels: int) -> Tensor:
    """Where ``count`` points spread over each box lie, in grid_sample's units (-1 to 1): (N, count)."""
    steps = torch.arange(count, dtype=start.dtype, device=start.device) + 0.5
    inside = (steps * length / count - 0.5).clamp_min(0)
    inside = torch.minimum(inside, length - 1)
    return ((inside + start) * 2 + 1) / pixels - 1


def _padded(images: Tensor, padding: int, mode: str, fill: float) -> Tensor:
    if not padding:
        return images
    if mode == "constant":
        return F.pad(images, (padding,) * 4, value=fill)
    for axis in (2, 3):
        length = images.shape[axis]
        if padding >= length:
            raise DataError(f"RandomCrop cannot mirror {padding} pixels of images of {tuple(images.shape[2:])} pixels")
        before = images.narrow(axis, 1, padding).flip(axis)
        after = images.narrow(axis, length - padding - 1, padding).flip(axis)
        images = torch.cat([before, images, after], axis)
    return images


def _pair(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise DataError(f"a crop's size is a number of pixels, or (height, width); got {size}")
    return pair


def _top(dtype: torch.dtype) -> int:
    return torch.iinfo(dtype).max
