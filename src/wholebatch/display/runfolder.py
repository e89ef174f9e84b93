"""The folder that a run leaves: ``history.jsonl`` as it goes, ``curves.png`` and ``curves.svg`` of it.

It is taken (:class:`wholebatch.checkpoint.Fence`) before anything is written, and everything is written through
that fence, so that a run that was thought dead and wakes up writes nothing into it. Other files of the folder
(``config.yaml``) are given as texts, so that all of them appear together or, where the input turns out to be wrong
before anything was trained, not at all.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wholebatch.core.errors import FencedError, InputError, InputTypeError, RunFolderError
from wholebatch.core.record import History, Observer, Record, RunShape
from wholebatch.core.url import Url, location
from wholebatch.display.jsonl import NAME, Journal
from wholebatch.display.jsonl import read_history as read_history
from wholebatch.display.output import Output, plain

_SHARE = 0.05  # of the time may go into pictures
_CHECKPOINTS = "checkpoints"


class RunFolder(Observer):
    """Keeps a run in the folder ``path``.

    The folder is made by ``start`` (or :meth:`prepare`), not before. Pictures are drawn at the end
    and at epochs between, at most every ``every`` seconds and for at most a twentieth of the time.
    A picture or line that cannot be written stops nothing; it is said in one line, once.

    Args:
        path: the folder, or the URL of one; its parents are made as well.
        texts: other files by name, e.g. ``{"config.yaml": "..."}``.
        resume: go on in a folder that holds a run (:meth:`go_on` says from where); otherwise such a one is refused.
        say: takes a warning of one line; standard error by default.
        every: seconds.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Url,
        *,
        texts: Mapping[str, str] | None = None,
        resume: bool = False,
        say: Callable[[str], None] | None = None,
        every: float = 10.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.path = location(path)
        self._texts = dict(texts or {})
        self.resume = resume
        self.fence: Any = None  # a Fence or, at a URL, a RemoteFence
        self._say = say or (lambda text: Output(sys.stderr).line(plain(text)))
        self._every = every
        self._clock = clock
        self._journal: Journal | None = None
        self._history = History()
        self._made: list[Path | Url] = []  # what this run made, oldest first
        self._trained = False
        self._said: set[str] = set()
        self._title = ""

    def check(self) -> None:
        """See whether the folder can be made and written, and leave everything as it was.

        Raises:
            RunFolderError: it cannot, or it holds another run.
        """
        self._refuse_other_run()
        made: list[Path | Url] = []
        try:
            self._make(made)
        finally:
            _remove(made)

    def prepare(self) -> None:
        """Make the folder, take it, and write the texts and an empty history; does nothing the second time.

        With ``resume`` the texts wait for :meth:`go_on`, if that is called.

        Raises:
            RunFolderError: it cannot be made or written, or it holds another run; nothing is left behind then.
        """
        if self._journal is not None:
            return
        from wholebatch.checkpoint import take  # it needs torch, which drawing a history does not

        self._refuse_other_run()
        made: list[Path | Url] = []
        try:
            self._make(made)
            own = [] if isinstance(self.path, Url) else [_CHECKPOINTS, f"{_CHECKPOINTS}/.generation"]
            within = [*own, *self._texts, NAME]
            made += [path for path in (self.path / name for name in within) if not path.exists()]
            self.fence = take(self.path)
            made += [self.fence.mark] if isinstance(self.path, Url) else []
            if not self.resume:
                self._write_texts()
            self._journal = Journal(self.path / NAME, self.fence)
        except BaseException as error:
            self._close()
            _remove(made)
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise
        self._made = made
        self._history = History(list(self._journal.records))

    def go_on(self, records: list[Record]) -> None:
        """Make ``records`` the history, and write the texts: the run goes on from there.

        Raises:
            RunFolderError: they cannot be written.
            FencedError: a newer world has the folder.
        """
        assert self._journal is not None
        try:
            self._write_texts()
            if records != self._journal.records:
                self._journal.rewrite(records)
        except OSError as error:
            raise self._unwritable(error) from error
        self._history = History(list(records))
        self._trained = bool(records)

    def _write_texts(self) -> None:
        assert self.fence is not None
        for name, text in self._texts.items():
            self.fence.replace(self.path / name, text.encode("utf-8"))

    def start(self, run: RunShape) -> None:
        """Make the folder; raises as :meth:`prepare`."""
        self.prepare()
        self._title = run.title
        self._next = self._clock() + self._every

    def record(self, record: Record) -> None:
        """Write the record; draw, where the last picture is old enough."""
        if self._journal is None:
            return
        self._trained = True
        self._history.records.append(dict(record))
        try:
            self._journal.add(record)
        except OSError as error:
            self._warn("history", f"{self.path / NAME} cannot be written now ({error}); training goes on")
        if record.get("kind") == "epoch" and self._clock() >= self._next:
            began = self._clock()
            self._draw()
            now = self._clock()
            self._next = now + max(self._every, (now - began) / _SHARE)

    def end(self, history: History, error: BaseException | None) -> None:
        """Draw, and give the folder back. A run that wrong input stopped before it began leaves nothing behind."""
        journal = self._journal
        if journal is None:
            return
        try:
            journal.flush()
        except (OSError, FencedError) as failure:
            self._said.discard("history")
            self._warn("history", f"{self.path / NAME} lacks its last records: {failure}")
        wrong = isinstance(error, (InputError, InputTypeError)) and not self._trained and not self._saved()
        if not wrong and self._history.records:
            self._draw()
        self._close()
        if wrong:
            _remove(self._made)

    def _close(self) -> None:
        fence, self.fence, self._journal = self.fence, None, None
        if fence is not None:
            fence.close()

    def _saved(self) -> bool:
        """Whether the folder holds a checkpoint."""
        folder = self.path / _CHECKPOINTS
        try:
            names = folder.names() if isinstance(folder, Url) else os.listdir(folder)
            return any(re.match(r"step-\d+", name) for name in names)
        except OSError:
            return False

    def write(self, path: Path, data: bytes) -> None:
        """Write a file of the folder, whole or not at all.

        Raises:
            OSError: it cannot be written.
            FencedError: a newer world has the folder.
        """
        if self.fence is None:
            raise OSError(f"the run folder {self.path} is not open")
        self.fence.replace(path, data)

    def tell(self, line: str) -> None:
        """Say a line to whoever takes this folder's warnings."""
        self._say(plain(line))

    def _draw(self) -> None:
        try:
            from wholebatch.display.figures import curves, picture

            assert self.fence is not None
            figure = curves(self._history, title=self._title)
            for kind in ("png", "svg"):
                self.fence.replace(self.path / f"curves.{kind}", picture(figure, kind))
        except Exception as error:  # a picture is only looked at: it must not stop the run
            self._warn("curves", f"the curves in {self.path} cannot be drawn: {type(error).__name__}: {error}")

    def _warn(self, topic: str, text: str) -> None:
        if topic not in self._said:
            self._said.add(topic)
            self._say(plain(text))

    def _make(self, made: list[Path | Url]) -> None:
        """Make the folder with its parents and try to write in it; note in ``made`` what was made."""
        try:
            if isinstance(self.path, Url):
                (self.path / ".probe").write_bytes(b"wholebatch")
                (self.path / ".probe").unlink()
                return
            missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            for folder in reversed(missing):
                folder.mkdir(exist_ok=True)
                made.append(folder)
            probe = self.path / f".probe.{os.getpid()}"
            try:
                probe.write_bytes(b"wholebatch")
            finally:
                probe.unlink(missing_ok=True)
        except (OSError, ValueError) as error:  # ValueError: a name with a null byte
            _remove(made)
            raise self._unwritable(error) from error

    def _unwritable(self, error: Exception) -> RunFolderError:
        reason = getattr(error, "strerror", None) or str(error)
        return RunFolderError(
            f"the run folder {str(self.path)!r} cannot be written: {reason}; choose a folder that can, with run_dir="
        )

    def _refuse_other_run(self) -> None:
        try:
            file = self.path / NAME
            holds = NAME if (file.size() if isinstance(file, Url) else file.stat().st_size) > 0 else None
        except (OSError, ValueError):
            holds = None
        if holds is None and "\0" not in str(self.path) and self._saved():
            holds = _CHECKPOINTS
        if holds and not self.resume:
            raise RunFolderError(
                f"the run folder {str(self.path)!r} already holds a run ({holds}); choose another run_dir, "
                "or go on with that run with resume=True"
            )


def _remove(made: list[Path | Url]) -> None:
    """Remove what was made, newest first; a folder that somebody else filled meanwhile stays."""
    for path in reversed(made):
        try:
            if isinstance(path, Url):
                path.unlink()
            elif path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        except OSError:
            pass
    made.clear()
