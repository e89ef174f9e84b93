"""Read one image: any file that Pillow knows, to uint8 channels first."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from wholebatch.core.errors import DataError

# All that hold photographs and drawings of pixels. Not among them are formats that Pillow hands to other programs
# (EPS is a program that Ghostscript runs) and those that are made of other files.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "TGA", "ICO", "JPEG2000", "AVIF", "PCX", "DIB")


def read_image(source: str | Path | bytes, name: str | None = None, mode: str = "RGB") -> Image.Image:
    """Return the image in a file, or in the bytes of one, upright and wholly decoded.

    Args:
        source: the file's path, or its content.
        name: what an error calls it; the path, if none.
        mode: Pillow's colour mode that it is turned into: "RGB", or "L" for grey levels.

    Raises:
        DataError: the file is missing, is no image, is cut off or damaged, or is absurdly large; it is named.
    """
    name = name or ("an image given as bytes" if isinstance(source, bytes) else str(source))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata; an image that cannot be decoded raises
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                _check_pixels(image)
                image.load()
                return _in_8_bits(ImageOps.exif_transpose(image)).convert(mode)
    except FileNotFoundError as error:
        raise DataError(f"there is no image {name}") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"the image {name} is too large to be one: {error}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is no image that Pillow can read") from error
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, IndexError, struct.error, …
        raise DataError(f"the image {name} cannot be read, it is damaged: {error}") from error


def _check_pixels(image: Image.Image) -> None:
    """Raise beyond Pillow's limit, where it only warns (warnings are no help: threads share their filters)."""
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and pixels > limit:
        raise Image.DecompressionBombError(f"{pixels:,} pixels, the limit is {limit:,} (PIL.Image.MAX_IMAGE_PIXELS)")


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Grey levels of 16 bits as such of 8; Pillow's own conversion makes all above 255 white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))


def as_tensor(image: Image.Image) -> Tensor:
    """Return the image as uint8 C×H×W, C being 1 for grey levels and 3 for RGB.

    >>> as_tensor(Image.new("RGB", (4, 3), (255, 0, 0))).shape
    torch.Size([3, 3, 4])
    """
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
