"""``manifest.json``: what a checkpoint holds, with a checksum of every file and of itself.

It is written last, so a folder without it was never finished. ``torch.load`` reads flipped bytes without
complaint; the SHA-256 here does not.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wholebatch.checkpoint.durable import digest_file
from wholebatch.version import __version__

NAME = "manifest.json"
STATE = "state.pt"
SHARDS = "shards"  # a folder: tensors of which every process held a part
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint: its folder (at a URL, that one's name), its step, and its manifest as it was read."""

    path: Path
    step: int
    manifest: dict[str, Any]

    @property
    def score(self) -> float | None:
        """What it was saved with, to find the best; None where there was none."""
        return self.manifest["score"]

    @property
    def shards(self) -> Path | None:
        """The folder with the tensors that were split over processes; None where all are in ``state.pt``."""
        return self.path / SHARDS if any(name != STATE for name in self.manifest["files"]) else None

    @property
    def generation(self) -> int:
        """Which world wrote it (:class:`wholebatch.checkpoint.Fence`)."""
        return self.manifest["generation"]


def describe(files: dict[str, dict[str, Any]], *, step: int, score: float | None, generation: int) -> bytes:
    """Return the bytes of a manifest for ``files``: name to ``sha256`` and ``size``."""
    versions = {"wholebatch": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
    content = {
        "format": FORMAT,
        "step": step,
        "score": score,
        "generation": generation,
        "versions": versions,
        "files": files,
    }
    return _encode({**content, "sha256": _digest(content)})


def read(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the manifest of the checkpoint folder ``path`` and ``""``, or None and why it cannot be trusted."""
    try:
        data = (path / NAME).read_bytes()
    except FileNotFoundError:
        return None, f"{NAME} is missing"
    except OSError as error:
        return None, f"{NAME} cannot be read: {error.strerror}"
    return parse(data)


def parse(data: bytes) -> tuple[dict[str, Any] | None, str]:
    """Return the manifest that ``data`` is and ``""``, or None and why it cannot be trusted."""
    try:
        manifest = json.loads(data)
        content = {key: value for key, value in manifest.items() if key != "sha256"}
        intact = manifest["sha256"] == _digest(content) and _encode(manifest) == data and STATE in manifest["files"]
    except (ValueError, AttributeError, KeyError, TypeError):  # not JSON in UTF-8, or not such an object
        intact = False
    return (manifest, "") if intact else (None, f"{NAME} does not match its checksum")


def damage(path: Path, files: dict[str, dict[str, Any]], *, thorough: bool = True) -> str:
    """Return what is wrong with ``files``, as a manifest names them, or ``""``; sizes alone where not ``thorough``."""
    for name, entry in files.items():
        try:
            size = (path / name).stat().st_size
            if size != entry["size"]:
                return f"{name} has {size} bytes instead of {entry['size']}"
            if thorough and digest_file(path / name) != entry["sha256"]:
                return f"{name} does not match its checksum"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return ""


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(_encode(content)).hexdigest()


def _encode(manifest: dict[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode()
