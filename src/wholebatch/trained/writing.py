"""Files beside a run, or in a folder of one's own: there whole or not at all."""

from __future__ import annotations

from pathlib import Path

from wholebatch.core.url import Url
from wholebatch.display import write_bytes


def put(folder: Path | Url, name: str, content: bytes) -> str:
    """Write ``content`` as ``folder/name`` and return that place; the folder is made where there is none.

    Raises:
        OSError: it cannot be written.
    """
    place = folder / name
    if isinstance(place, Url):
        place.write_bytes(content)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(place, content)
    return str(place)
