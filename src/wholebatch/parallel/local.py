"""Local steps: each logical worker trains by itself for some steps, then all of them meet.

Worker k makes steps of its own part of every batch, with weights, buffers and an optimizer's state of its own; between
two meetings nothing travels. What a meeting does is said in :mod:`wholebatch.parallel.rounds`. Local SGD (Stich 2018),
begun after some steps together: post-local SGD (Lin et al. 2018, "Don't Use Large Mini-Batches, Use Local SGD"). With
``overlap`` the mean travels while the next round is computed and is applied at its end, each worker keeping
what it has done since: CoCoD-SGD (Shen et al. 2019, "Faster Distributed Deep Net Training").
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from wholebatch.core import processes, tree
from wholebatch.core.errors import InputError
from wholebatch.core.failures import raise_together
from wholebatch.core.processes import Alone
from wholebatch.parallel.meeting import SinceMeeting, reported
from wholebatch.parallel.per_worker import WorkersEngine
from wholebatch.parallel.rounds import Change, Weights
from wholebatch.parallel.wire import to_first
from wholebatch.step import MicroBatches, Step, StepReport
from wholebatch.step.logical import FAILED, agree_on_edges, by_worker, own_workers, refuse_for_workers
from wholebatch.sums import NoiseScale


class LocalStep(Step):
    """A :class:`wholebatch.Step` of which every logical worker makes its own; all of them meet every ``every`` steps.

    The model has the weighted mean of the workers' weights after :meth:`show`, which training calls before it
    evaluates, saves and ends; between steps it has those of any worker. A report counts the whole batch's samples; its
    loss and weight are those of all steps since the last meeting, at a meeting, and nothing between two.
    ``report.grad_norm`` is then the norm of what the meeting moved the weights by, before an outer optimizer.

    Args:
        model, optimizer, loss: as for ``Step``. The optimizer's state becomes each worker's own.
        workers: how many logical workers there are; at least as many as processes.
        every: local steps from one meeting to the next.
        outer: None (the mean is taken), or the outer step's ``{"lr": …, "momentum": …}``.
        start: steps made together before; the first round begins after them.
        overlap: apply the mean one round late, so that it travels meanwhile.
        engine: says which processes there are.
        options: of ``Step``.

    Raises:
        InputError: what cannot be combined with local steps.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: Any,
        *,
        workers: int,
        every: int,
        outer: dict[str, float] | None = None,
        start: int = 0,
        overlap: bool = False,
        engine: Any = None,
        group: Any = None,
        **options: Any,
    ) -> None:
        if options.get("bitwise"):
            raise InputError("bitwise=True cannot be combined with local steps, which each process makes by itself")
        self._team = processes.current(group) if engine is None else engine.processes
        self._count, self._every, self._outer, self._start, self._late = workers, every, outer, start, overlap
        super().__init__(model, optimizer, loss, group=Alone(), **options)
        refuse_for_workers(str(self.mode), self._loss.coupled, self.align, self._half)
        if self._masters is not None:
            raise InputError(f"precision='bf16-true' cannot be combined with {self.mode}; use 'bf16' or 'fp32'")
        self._accumulator.noise = _Unmeasured()
        self._own = own_workers(self._team, workers)
        together = {**options, "schedule": None}
        self._together = Step(model, optimizer, loss, engine=WorkersEngine(self._team, workers), **together)
        everything = nn.ModuleList([model] if self._loss.module is None else [model, self._loss.module])
        self._weights = Weights(self._team, everything, self._own)
        self._states: dict[int, Any] = {}  # each worker's optimizer.state
        self._loaded: int | None = None  # whose weights the model has
        self._since = SinceMeeting(self._team, self._own, workers)
        self._change: Change | list[Tensor] | None = None  # of the last meeting, not applied yet
        self._sent: dict[int, list[Tensor]] = {}
        self._collected: dict[int, Any] | None = None
        self._met = 0
        self._begun = False

    # a step ---------------------------------------------------------------------------------------------

    def __call__(self, batch: Any, position: int | None = None) -> StepReport:
        """Make one step of every own worker; at a round's end meet the others.

        Args:
            batch: this process's workers' parts; ``wb.train`` gives them.
            position: place of the first sample in the whole batch.

        Raises:
            PeerError: another process failed since the last meeting; and as ``Step`` raises.
        """
        if self.calls < self._start:
            return self._step_together(batch, position)
        if not self._begun:
            self._begin()
        pieces, edges, place, samples = self._parts(batch, position)
        call, self._collected = self.calls, None
        if self._since.error is None:
            try:
                self._run_workers(pieces, edges, place)
            except Exception as error:
                if self._team.size == 1:
                    raise
                self._since.error = error
        self.calls = call + 1
        self.applied = self.calls - self.skipped
        if self._schedule is not None:
            self._schedule.step()
        if (self.calls - self._start) % self._every:
            return reported(0.0, 0.0, samples, 0)
        return self._meet_and_move(samples)

    def _step_together(self, batch: Any, position: int | None) -> StepReport:
        self._together.calls, self._together.watch = self.calls, self.watch
        report = self._together(batch, position)
        self.calls += 1
        self.skipped += report.skipped
        self.applied += not report.skipped
        if self._schedule is not None and not report.skipped:
            self._schedule.step()
        self._met = self.calls
        return report

    def _begin(self) -> None:
        """The first round begins: every worker from what all have."""
        self.share_buffers()
        self._weights.begin()
        state = self.optimizer.state_dict()
        self._states = {worker: self._copied_state(state) for worker in self._own}
        self._loaded, self._begun = None, True

    def share_buffers(self) -> None:
        """Make the buffers of all processes those of the first one; after a meeting they are."""
        for buffer in self.model.buffers():
            self._team.copy_from_first_(buffer)

    def _copied_state(self, state: dict[str, Any]) -> Any:
        """The optimizer's state made of a ``state_dict``, of its own."""
        copied = {number: _cloned(values) for number, values in state["state"].items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": copied})
        return self.optimizer.state

    def _parts(self, batch: Any, position: int | None) -> tuple[Iterator[Any], tuple[int, ...], int, int]:
        """The micro-batches, where the own workers' parts are among them, their place, samples of the whole batch."""
        window = batch if isinstance(batch, MicroBatches) else None
        whole = getattr(window, "whole", None)
        self._cutting.edges = ()
        if window is not None and window.edges is not None and whole is not None and position is not None:
            return self._counted(window), window.edges, position, whole
        samples, error = None, None
        try:
            samples = tree.count(self._cuttable(batch), self._axis) if window is None else window.samples
        except InputError as found:
            if self._team.size == 1:
                raise
            samples, error = FAILED, found
        edges, place, whole = agree_on_edges(self._team, self._count, samples)
        if not edges:
            raise_together(self._team, error)
        if window is not None:
            return self._counted(window), edges, place, whole
        self._cutting.edges = edges
        return self._cutting.pieces(self._cuttable(batch), edges[-1], 0), edges, place, whole

    def _cuttable(self, batch: Any) -> Any:
        return self._loss.cuttable(batch) if self._axis == 0 else batch

    def _counted(self, window: MicroBatches) -> Iterator[tuple[int, int, Any]]:
        """The micro-batches of a window, with where they begin and how many samples they have."""
        start = 0
        for piece in window:
            samples = tree.count(self._cuttable(piece), self._axis)
            yield start, samples, piece
            start += samples

    def _run_workers(self, pieces: Iterator[Any], edges: tuple[int, ...], place: int) -> None:
        """One step of each own worker that has samples."""
        whose: list[int] = []
        marked = by_worker(pieces, edges, self._own.start, whose.append, self._axis)
        calls, schedule = self.calls, self._schedule
        self._schedule = None  # it moves once, and not with every worker
        try:
            for worker, group in itertools.groupby(marked, lambda piece: whose[-1]):
                start = edges[worker - self._own.start]
                self._take(worker)
                self.calls, skipped = calls, self.skipped
                part = MicroBatches((piece for _, _, piece in group), edges[worker - self._own.start + 1] - start)
                report = super().__call__(part, position=place + start)
                self.skipped = skipped
                self._since.add(worker, report)
        finally:
            self._schedule = schedule

    def _take(self, worker: int | None) -> None:
        """Make model and optimizer a worker's; None keeps what the one before has, and leaves the model free."""
        if self._loaded == worker:
            return
        if self._loaded is not None:
            self._weights.store(self._loaded)
        if worker is not None:
            self._weights.load(worker)
            self.optimizer.state = self._states[worker]
        self._loaded = worker

    # meetings -------------------------------------------------------------------------------------------

    def _meet(self, samples: int = 0) -> StepReport:
        """Tell each other what came of the steps since; every process raises where one failed."""
        met = self._since.meet(samples)
        self._met = self.calls
        return met

    def _meet_and_move(self, samples: int) -> StepReport:
        """The end of a round."""
        report = self._meet(samples)
        self._take(None)
        outer = self._outer or {}
        if not self._late:
            change = self._weights.begin_change(self._since.shares).wait()
            self._weights.move(change, outer.get("lr"), outer.get("momentum", 0.0))
            self._weights.all_from_anchor()
        else:
            change = self._arrived()
            if change:
                self._weights.late(change, self._sent)
                self._weights.move(change, None, 0.0)
            self._change = self._weights.begin_change(self._since.shares)
            self._sent = self._change.own
        self._since.begin_round()
        report._norm = self._weights.norm(change)
        return report

    def _arrived(self) -> list[Tensor]:
        """What the meeting before came to; nothing where there was none."""
        if isinstance(self._change, Change):
            self._change = self._change.wait()
        return self._change or []

    def show(self) -> StepReport | None:
        """Make the model the weighted mean of the workers' weights; all processes call it.

        Returns:
            The sums of the steps since the last meeting.
        """
        if not self._begun or self.calls <= self._start:
            return None
        if not self._late and (self.calls - self._start) % self._every == 0:
            self._weights.show([])  # they have just met
            return None
        met = self._meet()
        self._take(None)
        self._arrived()
        self._weights.show(self._weights.begin_change(self._since.shares).wait())
        return met

    @property
    def in_touch(self) -> bool:
        """Whether the processes met in the last step."""
        return self._met == self.calls

    @property
    def workers(self) -> int | None:
        """How many logical workers every batch is cut for."""
        return self._count

    @property
    def mode(self) -> str | None:
        """In words, for the history."""
        words = [f"{self._count} workers", f"{self._every} local steps"]
        words += [f"after {self._start} together"] if self._start else []
        outer = self._outer
        words += ["mean" if outer is None else f"DiLoCo with lr {outer['lr']:g} and momentum {outer['momentum']:g}"]
        return ", ".join([*words, *(["applied one round late"] if self._late else [])])

    # state ----------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Bring the weights and optimizer states of all workers to the first process; all processes call it."""
        if not self._begun:
            return
        found = to_first(self._team, self._own_states())
        if found is not None:
            self._collected = {worker: state for of_process in found for worker, state in of_process.items()}

    def _own_states(self) -> dict[int, Any]:
        """What the next step depends on of each own worker."""
        self._take(None)
        self._arrived()
        states = {}
        for worker in self._own:
            self.optimizer.state = self._states[worker]
            states[worker] = {
                "weights": _cloned(self._weights.held[worker]),
                "counts": _cloned(self._weights.counts[worker]),
                "optimizer": _cloned(self.optimizer.state_dict()["state"]),
                "round": self._since.round[worker],
                "share": self._since.shares[worker],
                "sent": _cloned(self._sent.get(worker, [])),
            }
        self.optimizer.state = self._states[self._own.start]
        return states

    def _more(self) -> dict[str, Any]:
        return {name: part for name, part in super()._more().items() if name != "noise"}

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on: of all workers after ``collect``, else of this process's own."""
        state = super().state_dict()
        if not self._begun:
            return {**state, "local": None}
        workers = self._own_states() if self._collected is None else self._collected
        shared = {"anchor": _cloned(self._weights.anchor), "momentum": _cloned(self._weights.momentum)}
        shared |= {"change": _cloned(self._arrived()), "met": self._met}
        return {**state, "local": {**shared, "workers": workers}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken, on any number of processes.

        Raises:
            InputError: it is not of local steps, or lacks a worker of this process's.
        """
        if "local" not in state:
            raise InputError("this state is not of a step with local_steps")
        super().load_state_dict(state)
        local = state["local"]
        self._begun, self._met = local is not None, self.calls
        if local is None:
            return
        missing = [worker for worker in self._own if worker not in local["workers"]]
        if missing:
            raise InputError(
                f"this state lacks the logical worker {missing[0]}; call step.collect() in every process before "
                "state_dict(), and load what the first process has in all of them"
            )
        self._weights.restore(local)
        own = {worker: local["workers"][worker] for worker in self._own}
        self._states = {worker: self._copied_state({"state": of["optimizer"]}) for worker, of in own.items()}
        self._since.round = {worker: of["round"] for worker, of in own.items()}
        self._since.shares = {worker: of["share"] for worker, of in own.items()}
        self._sent = {worker: self._weights.placed(of["sent"]) for worker, of in own.items() if of["sent"]}
        self._change = self._weights.placed(local["change"]) or None
        self._met, self._loaded, self._collected = local["met"], None, None
        self._since.nothing_left()


class _Unmeasured(NoiseScale):
    """Workers' steps are no micro-batches of one step, so that nothing tells the noise."""

    unmeasured = "logical workers that step by themselves have no gradient of the whole batch to compare with"

    @property
    def due(self) -> bool:
        """Never."""
        return False


def _cloned(thing: Any) -> Any:
    """Tensors copied, in dicts and lists as they are."""
    if isinstance(thing, Tensor):
        return thing.detach().clone()
    if isinstance(thing, dict):
        return {name: _cloned(value) for name, value in thing.items()}
    return [_cloned(value) for value in thing] if isinstance(thing, list) else thing
