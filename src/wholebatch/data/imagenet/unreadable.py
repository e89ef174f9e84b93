"""Which images cannot be read: every one is decoded once, and what was found is kept."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

from wholebatch.core.errors import DataError
from wholebatch.data.imagenet.listing import list_path, write_whole
from wholebatch.data.imagenet.unpack import alone, say
from wholebatch.data.images import read_image

_ALONE = 500  # images; fewer are decoded in this process
_EVERY = 50_000  # images between two lines of progress


def unreadable(folder: Path, images: Sequence[str], cache: Path) -> list[str]:
    """Return those of ``images`` (paths below ``folder``) that cannot be read.

    The answer is kept in ``cache`` for this list of images, and counts until one of those found changes.
    """
    of = hashlib.sha256("\n".join(images).encode()).hexdigest()[:16]
    kept = list_path(folder, cache, f"{of}.unreadable.json")
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
    writable = os.access(kept.parent, os.W_OK)
    with alone(kept.with_suffix(".lock"), "decodes the images") if writable else nullcontext():
        known = _read(kept)
        if known is not None and known == _state(folder, list(known)):
            return sorted(known)
        say(f"decoding {len(images)} images once, to find those that cannot be read")
        found = sorted(_decode(folder, images))
        with suppress(OSError):
            write_whole(kept, json.dumps(_state(folder, found)))
    return found


def _decode(folder: Path, images: Sequence[str]) -> Iterator[str]:
    fails = partial(_fails, str(folder))
    if len(images) < _ALONE or "fork" not in multiprocessing.get_all_start_methods():
        yield from (image for image in images if fails(image))
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which the children do not use
        pool = multiprocessing.get_context("fork").Pool(min(32, os.cpu_count() or 1))
    with pool:
        for number, (image, bad) in enumerate(zip(images, pool.imap(fails, images, chunksize=64), strict=True), 1):
            if bad:
                yield image
            if number % _EVERY == 0:
                say(f"{number} images decoded")


def _fails(folder: str, image: str) -> bool:
    try:
        read_image(os.path.join(folder, image))
    except DataError:
        return True
    return False


def _state(folder: Path, images: Sequence[str]) -> dict[str, list[int]]:
    """Size and time of change of each; of one that is gone, nothing."""
    found = {}
    for image in images:
        with suppress(OSError):
            stat = (folder / image).stat()
            found[image] = [stat.st_size, stat.st_mtime_ns]
    return found


def _read(path: Path) -> dict[str, list[int]] | None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) else None
