"""One batch ahead: the next batch goes to the device while the current one is worked on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import torch

from wholebatch.core import tree


class Ahead:
    """An iterator whose next item is being fetched and moved to ``device`` while the last one is in use.

    A thread takes items from ``items`` and copies them on a CUDA stream of its own; whoever asks for one makes
    its own stream wait for that copy, and not the host. At most one item waits.

    Args:
        items: an iterator of batches; only the thread reads it.
        device: where they go.
    """

    def __init__(self, items: Iterator[Any], device: torch.device) -> None:
        self._items, self._device = items, device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._queue: queue.Queue[tuple[str, Any, Any]] = queue.Queue(maxsize=1)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wholebatch-ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Ahead:
        return self

    def __next__(self) -> Any:
        if self._stopped.is_set():
            raise StopIteration
        kind, item, copied = self._queue.get()
        if kind == "item":
            self._wait_for(item, copied)
            return item
        self._stopped.set()
        if kind == "error":
            raise item
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and wait for its end. May be called again."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()  # it may be waiting to put one in
            except queue.Empty:
                self._thread.join(0.01)

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                try:
                    item = next(self._items)
                except StopIteration:
                    self._queue.put(("end", None, None))
                    return
                self._queue.put(("item", *self._moved(item)))
        except BaseException as error:
            self._queue.put(("error", error, None))

    def _moved(self, item: Any) -> tuple[Any, Any]:
        """The item on the device, and what says that its copy is done."""
        if self._side is None:
            return tree.to_device(item, self._device), None
        with torch.cuda.stream(self._side):
            return tree.to_device(item, self._device), self._side.record_event()

    def _wait_for(self, item: Any, copied: Any) -> None:
        if copied is None:
            return
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied)

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            tensor.record_stream(current)  # its memory is the side stream's, which must not reuse it too early
            return tensor

        tree.map_tensors(keep, item)
