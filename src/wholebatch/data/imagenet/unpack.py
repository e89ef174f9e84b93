"""From an archive to a tree that is there whole or not at all.

Everything is unpacked into ``.train.partial`` beside the target. A class appears in it by one rename (a
validation image likewise), so what is there is whole, and a run that was killed is continued by the next one. The list
of files is written, and then one rename makes the tree: that is the mark that it is done. One process works at a
time, the others wait for it and find the tree.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wholebatch.core import processes
from wholebatch.core.errors import DataError
from wholebatch.data.imagenet.archives import Entry, copy, entries
from wholebatch.data.imagenet.devkit import GroundTruth
from wholebatch.data.imagenet.listing import is_image, keep_list, write_whole
from wholebatch.data.imagenet.names import SYNSET
from wholebatch.data.imagenet.places import holds_images

try:
    import fcntl
except ImportError:  # not on Windows, where processes that prepare at once are not kept apart
    fcntl = None  # type: ignore[assignment]

_ORIGIN = ".origin.json"  # which archive the partial tree is of
_UNFINISHED = ".part"
_EVERY = 100  # inner archives between two lines of progress
_EVERY_IMAGE = 10_000


def unpack_train(archive: Path, target: Path) -> None:
    """Unpack the archive of archives, one per class, to ``target/<synset>/<image>``.

    Raises:
        DataError: the archive is damaged, holds what it should not, or there is no place to write to.
    """
    with _staged(archive, target) as partial:
        if partial is None:
            return
        with archive.open("rb") as file:
            for number, entry in enumerate(entries(file, archive.name), 1):
                synset, _, ending = entry.parts[-1].partition(".")
                if ending != "tar" or not SYNSET.fullmatch(synset):
                    raise DataError(f"{entry.where} is no archive of one class; expected a name such as n01440764.tar")
                _unpack_class(entry, partial, synset)
                if number % _EVERY == 0:
                    say(f"{number} classes unpacked")


def unpack_validation(archive: Path, target: Path, truth: GroundTruth) -> None:
    """Unpack the validation images to ``target/<synset>/<image>``; a folder in the archive goes before ``truth``.

    Raises:
        DataError: as :func:`unpack_train`, or the class of an image is not known.
    """
    with _staged(archive, target) as partial:
        if partial is None:
            return
        with archive.open("rb") as file:
            images = (entry for entry in entries(file, archive.name) if is_image(entry.parts[-1]))
            for number, entry in enumerate(images, 1):
                sorted_there = len(entry.parts) > 1 and SYNSET.fullmatch(entry.parts[-2])
                folder = partial / (entry.parts[-2] if sorted_there else truth(entry.parts[-1]))
                folder.mkdir(exist_ok=True)
                _unpack_file(entry, folder / entry.parts[-1])
                if number % _EVERY_IMAGE == 0:
                    say(f"{number} images unpacked")


def say(line: str) -> None:
    """Print a line, once where several processes do the same."""
    if processes.current().rank == 0 and os.environ.get("RANK", "0") == "0":
        print(f"ImageNet: {line}", flush=True)


@contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Run the block in one process at a time; a process that is killed lets go by itself.

    Raises:
        OSError: the lock's file cannot be written.
    """
    with lock.open("ab") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another process {what}; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # a file system without locks
                pass
        yield


@contextmanager
def _staged(archive: Path, target: Path) -> Iterator[Path | None]:
    """The folder that becomes ``target`` when the block ends, or None where another process has made it meanwhile."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        with alone(target.with_name(f".{target.name}.lock"), f"unpacks {archive.name}"):
            if holds_images(target):
                yield None
                return
            if target.exists() and any(target.iterdir()):
                raise DataError(f"{target} holds something else than ImageNet's classes; move it away")
            _begin(archive, partial)
            say(f"unpacking {archive} to {target}; if this is interrupted, the next run goes on from there")
            yield partial
            if not holds_images(partial):
                raise DataError(f"{archive} holds no images")
            keep_list(partial)
            os.rename(partial, target)
            say(f"{target} is complete; it will be used from now on, {archive.name} may go")
    except OSError as error:
        size = archive.stat().st_size / 1e9
        raise DataError(
            f"cannot unpack {archive} to {target}: {error}; it takes {size:.1f} GB. What was unpacked so far is kept, "
            "and the next run goes on from there"
        ) from error


def _begin(archive: Path, partial: Path) -> None:
    """Keep what was unpacked of the same archive, and nothing else."""
    stat = archive.stat()
    origin = json.dumps({"archive": archive.name, "bytes": stat.st_size, "changed": stat.st_mtime_ns})
    said = partial / _ORIGIN
    if partial.is_dir() and not (said.is_file() and said.read_text(encoding="utf-8") == origin):
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    write_whole(said, origin)
    for rest in [*partial.glob(f".*{_UNFINISHED}"), *partial.glob(f"*/.*{_UNFINISHED}"), *partial.glob(".*.tmp")]:
        shutil.rmtree(rest) if rest.is_dir() else rest.unlink()


def _unpack_class(entry: Entry, partial: Path, synset: str) -> None:
    final, part = partial / synset, partial / f".{synset}{_UNFINISHED}"
    if final.is_dir():
        return
    part.mkdir()
    for image in entries(entry.content, entry.where):
        if image.parts[:-1] not in ((), (synset,)):
            raise DataError(f"{image.where} lies in another folder than its class's, {synset}; it is refused")
        if is_image(image.parts[-1]):
            copy(image, part / image.parts[-1])
    part.rename(final)


def _unpack_file(entry: Entry, target: Path) -> None:
    if target.is_file() and target.stat().st_size == entry.size:
        return
    part = target.with_name(f".{target.name}{_UNFINISHED}")
    copy(entry, part)
    part.rename(target)
