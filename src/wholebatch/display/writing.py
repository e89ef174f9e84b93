"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader, or a killed run, never sees a part of it.

    The bytes go to a temporary file in the same folder, which then takes the place of ``path``.

    Raises:
        OSError: the file cannot be written; ``path`` is then as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` in UTF-8 as :func:`write_bytes` does.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_text(Path(folder) / "config.yaml", "lr: 0.1\\n")
    ...     (Path(folder) / "config.yaml").read_text()
    'lr: 0.1\\n'
    """
    write_bytes(path, text.encode("utf-8"))
