"""Saving beside the training: the step waits for a copy of the state, not for the disk."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Self

from wholebatch.checkpoint.part import Part, take_out
from wholebatch.checkpoint.remote_store import RemoteStore
from wholebatch.checkpoint.snapshot import Snapshot, require_plain
from wholebatch.checkpoint.store import Store
from wholebatch.checkpoint.together import Together

_NAME = "wholebatch-checkpoint"  # of the thread


class Background:
    """Saves to ``store`` in one thread at a time.

    ``save`` copies the state and returns; the thread writes the copy and ends. At most one save is under way: a
    second one waits for the first, so no checkpoint that was asked for is left out and at most one copy of the
    state is held. What the thread raised comes out of the next call of any method. No call is needed for the
    thread to finish, and none is left behind; :meth:`close` waits for it.

    ``store.say`` is called from the thread. The store and its fence belong to it while a save is under way
    (the fence's own methods may be called from anywhere).

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as run, Background(Store(run)) as background:
    ...     background.save({"weight": torch.zeros(1)}, step=1)
    ...     background.wait()
    True
    """

    def __init__(self, store: Store | RemoteStore | Together) -> None:
        self.store = store
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._saved = True

    def save(self, state: dict[str, Any], *, step: int, score: float | None = None) -> None:
        """Copy ``state`` and begin to save the copy; waits first where a save is under way.

        With :class:`Together` all processes call it, each with the parts that it holds in ``state``.

        Raises:
            FencedError: the save before found that a newer world has the folder.
            InputTypeError: ``state`` holds something that a checkpoint cannot hold.
        """
        self.wait()
        plain, parts = take_out(state) if isinstance(self.store, Together) else (state, {})
        require_plain(plain)
        snapshot = Snapshot((plain, {name: part.tensors for name, part in parts.items()}))
        # not a daemon: an interpreter that ends without close() waits for the checkpoint to stand
        self._thread = threading.Thread(target=self._run, args=(snapshot, parts, step, score), name=_NAME)
        self._thread.start()

    def wait(self) -> bool:
        """Wait until no save is under way; return whether the last one stands (:meth:`Store.save`).

        Raises:
            FencedError: it found that a newer world has the folder.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._saved

    def close(self) -> None:
        """Wait until no save is under way; raises as :meth:`wait`. May be called again."""
        self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except Exception:
            if kind is None:  # otherwise the error that is on its way says more
                raise

    def _run(self, snapshot: Snapshot, parts: Mapping[str, Part], step: int, score: float | None) -> None:
        self._saved = False
        try:
            state, tensors = snapshot.ready()
            if isinstance(self.store, Together):
                own = {name: part.holding(tensors[name]) for name, part in parts.items()}
                self._saved = self.store.save(state, own, step=step, score=score)
            else:
                self._saved = self.store.save(state, step=step, score=score)
        except BaseException as error:  # it comes out of the next call
            self._error = error
