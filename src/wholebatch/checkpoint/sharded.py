"""Tensors of which every process holds a part, in a folder of their own, by torch.distributed.checkpoint.

::

    shards/__0_0.distcp, __1_0.distcp, …   of each process what it holds; what several hold alike, one of them writes
    shards/.metadata                       what is where, by torch

Reading needs no other process: each takes from the files what it wants, however they were split. Torch's metadata is
a pickle; it is read by an unpickler that knows the few classes that belong there, and refuses everything else. The
tensors in the files are read with ``weights_only=True`` (torch's ``FileSystemReader`` does so), and nothing that is
no tensor is read at all.

Imported only where there are such files, since torch.distributed.checkpoint takes a while.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata, planner
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.futures import Future

from wholebatch.checkpoint.durable import new_file
from wholebatch.checkpoint.part import Part
from wholebatch.core.errors import CheckpointError, PeerError
from wholebatch.core.processes import Processes

METADATA = ".metadata"
_FILE = re.compile(r"__\d+_\d+\.distcp")


def write(folder: Path, parts: Mapping[str, Part], processes: Processes) -> dict[str, dict[str, Any]]:
    """Write what each process holds of its ``parts`` into the empty ``folder``; all processes call it.

    Returns:
        Of every file, flushed, its ``sha256`` and ``size``.

    Raises:
        OSError: one process could not write; on all of them, naming that one.
        PeerError: something else went wrong in one; likewise.
    """
    writer, plan = _Writer(folder), _Saved()
    try:
        dcp.save(dict(parts), storage_writer=writer, planner=plan, process_group=processes.group)
    except dcp.CheckpointException as failed:
        rank = min(failed.failures)
        raise _failure(rank, _plain(failed.failures[rank][0])) from None
    said = processes.gather((writer.files.written, plan.failed or writer.failed))
    for rank, (_, error) in enumerate(said):
        if error is not None:
            raise _failure(rank, error)
    return {name: entry for written, _ in said for name, entry in written.items()}


def read(folder: Path, wanted: Iterable[Part]) -> None:
    """Fill the pieces of ``wanted`` with what they are in ``folder``; each process reads for itself.

    Raises:
        CheckpointError: a tensor is not there, or is another one, or the files cannot be read or trusted.
    """
    by_name: dict[str, Part] = {}
    for part in wanted:
        if math.prod(part.shape):
            known = by_name.get(part.name)
            pieces = part.pieces if known is None else known.pieces + part.pieces
            by_name[part.name] = Part(part.name, part.shape, part.dtype, pieces)
    if not by_name:
        return
    reader = _Reader(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it reads alone, which is meant
            dcp.load(by_name, storage_reader=reader, planner=_Wanted(), no_dist=True)
    except dcp.CheckpointException as failed:
        error, _ = failed.failures[0]
        if isinstance(error, CheckpointError) or not isinstance(error, Exception):
            raise error from None  # what is no Exception (Ctrl-C) torch has taken, too
        raise CheckpointError(f"{folder} cannot be read: {type(error).__name__}: {error}") from error


def _failure(rank: int, error: Exception) -> Exception:
    """What a process has met, for all."""
    if isinstance(error, FileNotFoundError):
        reason = "does not find the folder, which has to be on a file system that all processes share"
        return FileNotFoundError(error.errno, f"process {rank} {reason}")
    if isinstance(error, OSError):
        return OSError(error.errno, f"process {rank}: {error.strerror or error}")
    return PeerError(f"process {rank} failed: {error}")


def _plain(error: BaseException) -> Exception:
    """An error that can be sent."""
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror or str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


# writing ----------------------------------------------------------------------------------------------


class _Files(filesystem.FileSystem):
    """New files, flushed when they are closed; their digests are of what was handed to the disk."""

    def __init__(self) -> None:
        self.written: dict[str, dict[str, Any]] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        with new_file(Path(path)) as sink:
            yield sink
        self.written[Path(path).name] = sink.entry()

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.written[Path(new_path).name] = self.written.pop(Path(path).name)


class _Writer(dcp.FileSystemWriter):
    """Keeps what goes wrong: torch would send the others its traceback as well, which not every Python can pickle."""

    def __init__(self, folder: Path) -> None:
        self.failed: Exception | None = None
        super().__init__(folder, sync_files=False, per_thread_copy_ahead=0, overwrite=False)
        self.fs = self.files = _Files()  # which flushes by itself

    def storage_meta(self) -> metadata.StorageMeta:
        return metadata.StorageMeta()  # without the path, which is another one when the checkpoint stands

    def prepare_local_plan(self, plan: planner.SavePlan) -> planner.SavePlan:
        """Look at nothing: the first process has made the folder. Where it is not seen, no file can be opened."""
        return plan

    def write_data(self, plan: planner.SavePlan, planner: planner.SavePlanner) -> Future[list[Any]]:
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            self.failed = _plain(error)
            nothing: Future[list[Any]] = Future()
            nothing.set_result([])
            return nothing

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        try:
            super().finish(metadata, results)
        except Exception as error:
            self.failed = self.failed or _plain(error)


class _Saved(DefaultSavePlanner):
    """Plans to write parts: what several processes hold alike is written by the one that has least to write.

    It keeps what goes wrong, as the writer does; then nobody writes anything.
    """

    state_dict: dict[str, Any]

    def __init__(self) -> None:
        self.failed: Exception | None = None
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def create_local_plan(self) -> planner.SavePlan:
        try:
            self.plan = planner.SavePlan([item for part in self.state_dict.values() for item in _to_write(part)])
        except Exception as error:
            self.failed = _plain(error)
            self.plan = planner.SavePlan([], usable=False)
        return self.plan

    def create_global_plan(self, all_plans: list[planner.SavePlan]) -> tuple[list[planner.SavePlan], Metadata]:
        try:
            if all(plan.usable for plan in all_plans):
                return super().create_global_plan(all_plans)
        except Exception as error:
            self.failed = _plain(error)
        return [planner.SavePlan([]) for _ in all_plans], Metadata({})

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return dict(self.state_dict[index.fqn].pieces)[tuple(index.offset or ())]


def _to_write(part: Part) -> Iterator[planner.WriteItem]:
    for place, tensor in part.pieces:
        chunk = ChunkStorageMetadata(torch.Size(place), tensor.size())
        data = planner.TensorWriteData(chunk, TensorProperties(dtype=tensor.dtype), torch.Size(part.shape))
        yield planner.WriteItem(MetadataIndex(part.name, place), planner.WriteItemType.SHARD, tensor_data=data)


# reading ----------------------------------------------------------------------------------------------


class _Reader(dcp.FileSystemReader):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._metadata = _metadata_in(folder)

    def read_metadata(self) -> Metadata:
        return self._metadata


class _Wanted(DefaultLoadPlanner):
    """Plans to read parts."""

    state_dict: dict[str, Any]

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        self.state_dict, self.metadata = state_dict, metadata

    def create_local_plan(self) -> planner.LoadPlan:
        assert self.metadata is not None
        known = self.metadata.state_dict_metadata
        return planner.LoadPlan(
            [item for name, part in self.state_dict.items() for item in _to_read(part, known.get(name))]
        )

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].tensors[index.index]

    def load_bytes(self, read_item: planner.ReadItem, value: io.BytesIO) -> None:
        raise CheckpointError(f"{read_item.dest_index.fqn} is no tensor")


def _to_read(part: Part, there: Any) -> list[planner.ReadItem]:
    if there is None:
        raise CheckpointError(f"{part.name} is not in the checkpoint")
    if tuple(there.size) != part.shape or there.properties.dtype != part.dtype:
        what = f"{tuple(there.size)} {there.properties.dtype}"
        raise CheckpointError(f"{part.name} is {what} in the checkpoint; expected {part.shape} {part.dtype}")
    own = [ChunkStorageMetadata(torch.Size(place), tensor.size()) for place, tensor in part.pieces]
    items = create_read_items_for_chunk_list(part.name, there, own)
    if sum(math.prod(item.lengths) for item in items) != sum(tensor.numel() for tensor in part.tensors):
        raise CheckpointError(f"{part.name} is not whole in the checkpoint")
    return items


def _metadata_in(folder: Path) -> Metadata:
    """Torch's metadata, read by name and looked through before anything follows it."""
    path = folder / METADATA
    try:
        with open(path, "rb") as file:
            found = _Unpickler(file).load()
        sound = type(found) is Metadata and all(
            type(entry) is metadata.TensorStorageMetadata for entry in found.state_dict_metadata.values()
        )
        sound = sound and all(_is_stored(entry) for entry in found.storage_data.values())
    except CheckpointError:
        raise
    except Exception as error:  # whatever a broken pickle leads to
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not sound:
        raise CheckpointError(f"{path} is no description of tensors in files beside it")
    return found


def _is_stored(entry: Any) -> bool:
    """Whether this names a place in a file of the folder, without anything to be run on it."""
    plain = type(entry) is filesystem._StorageInfo and not entry.transform_descriptors
    return plain and isinstance(entry.relative_path, str) and _FILE.fullmatch(entry.relative_path) is not None


class _Unpickler(pickle.Unpickler):
    """Makes what torch's metadata consists of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        found = _KNOWN.get((module, name))
        if found is None and module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            found = getattr(torch, name)
        if found is None:
            raise CheckpointError(
                f"the metadata of this checkpoint's shards names {module}.{name}, which does not belong there; it is "
                "not read, since a pickle can run anything"
            )
        return found


def _member(kind: Any, name: str) -> Any:
    """``getattr``, by which the first releases of Python 3.11 pickle a member of an enumeration, for the one here."""
    if kind is not metadata._MEM_FORMAT_ENCODING:
        raise CheckpointError(f"the metadata of this checkpoint's shards asks for {name!r} of {kind!r}")
    return kind[name]


_KNOWN: dict[tuple[str, str], Any] = {
    **{
        (kind.__module__, kind.__name__): kind
        for kind in (
            Metadata,
            metadata.TensorStorageMetadata,
            TensorProperties,
            metadata._MEM_FORMAT_ENCODING,
            ChunkStorageMetadata,
            MetadataIndex,
            metadata.StorageMeta,
            filesystem._StorageInfo,
            torch.Size,
        )
    },
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("builtins", "getattr"): _member,
}
