"""What ``parallel=`` says of logical workers: ways to send less, which change the result, and so are chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from wholebatch.core.errors import ConfigError, nearest
from wholebatch.core.processes import Processes
from wholebatch.parallel.compress import DTYPES, HalfEngine
from wholebatch.parallel.local import LocalStep
from wholebatch.parallel.per_worker import WorkersEngine
from wholebatch.parallel.powersgd import PowerSgdEngine
from wholebatch.parallel.stale import StaleEngine
from wholebatch.step import Step

KEYS = ("workers", "compress", "local_steps", "outer", "start", "overlap", "stale")
_ALONG = ("data",)  # what may stand beside them
_DILOCO = {"lr": 0.7, "momentum": 0.9}  # of Douillard et al. 2023
_EXPECTED = {
    "compress": "'bf16', 'fp16' or {'powersgd': rank}",
    "outer": "'average', 'diloco' or {'diloco': {'lr': 0.7, 'momentum': 0.9}}",
}


@dataclass(frozen=True)
class Workers:
    """What was asked of logical workers, checked."""

    workers: int
    compress: str | int | None = None
    """"bf16", "fp16", or PowerSGD's rank."""
    local_steps: int | None = None
    outer: dict[str, float] | None = None
    start: int = 0
    overlap: bool = False
    stale: int | None = None

    def engine(self, here: Processes) -> WorkersEngine:
        """Return what sums the gradients of the workers.

        Raises:
            ConfigError: there are more processes than workers.
        """
        if here.size > self.workers:
            raise ConfigError(
                f"parallel: workers={self.workers}, but there are {here.size} processes; every process needs a worker "
                f"at least: start {self.workers} of them, or say workers={here.size}, which changes the result"
            )
        if self.local_steps is not None:
            return _OfLocalSteps(here, self.workers)
        if isinstance(self.compress, int):
            return PowerSgdEngine(here, self.workers, self.compress)
        if self.compress is not None:
            return HalfEngine(here, self.workers, self.compress)
        if self.stale is not None:
            return StaleEngine(here, self.workers, self.stale)
        return WorkersEngine(here, self.workers)

    def step(self) -> Callable[..., Step]:
        """Return what makes the step, called as :class:`wholebatch.Step` is."""
        if self.local_steps is None:
            return Step
        return partial(
            LocalStep,
            workers=self.workers,
            every=self.local_steps,
            outer=self.outer,
            start=self.start,
            overlap=self.overlap,
        )


class _OfLocalSteps(WorkersEngine):
    """Says which processes there are; a :class:`LocalStep` sums by itself."""

    def begin(self, parameters: Any, model: Any) -> None:
        """Refuse a step that would make no local steps.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "this engine is of local steps, which a plain Step or GradientAccumulator does not make; make the step by "
            "wholebatch.parallel.step_for(parallel)(model, optimizer, loss, engine=…)"
        )


def asked(parallel: Any) -> Workers | None:
    """Return what ``parallel=`` asks of logical workers; None where it names none.

    >>> asked("auto"), asked({"workers": 4, "compress": {"powersgd": 2}})
    (None, Workers(workers=4, compress=2, local_steps=None, outer=None, start=0, overlap=False, stale=None))

    Raises:
        ConfigError: values that cannot be, or that cannot be together; the message has the repair.
    """
    given = (
        {key: parallel[key] for key in KEYS if parallel.get(key) is not None} if isinstance(parallel, Mapping) else {}
    )
    if not given:
        return None
    for key, value in parallel.items():
        if key in KEYS or key in _ALONG or value in (None, "auto", 1):
            continue
        known = (*KEYS, *_ALONG, "engine", "shard", "tensor", "pipeline")
        if key not in known:
            raise ConfigError(f"parallel: there is no key {key!r}{nearest(str(key), known)}")
        raise ConfigError(
            f"parallel: {key}={value!r} cannot be combined with {_first(given)}; leave one of the two out"
        )
    if "workers" not in given:
        raise ConfigError(
            f"parallel: {_first(given)} needs workers=K, the number of logical workers that the result is a function of"
        )
    _refuse_together(given)
    return Workers(
        workers=_count("workers", given["workers"], 1),
        compress=_compress(given.get("compress")),
        local_steps=None if "local_steps" not in given else _count("local_steps", given["local_steps"], 1),
        outer=_outer(given.get("outer", "average")),
        start=_count("start", given.get("start", 0), 0),
        overlap=_flag("overlap", given.get("overlap", False)),
        stale=None if "stale" not in given else _count("stale", given["stale"], 1),
    )


def _refuse_together(given: Mapping[str, Any]) -> None:
    ways = [key for key in ("compress", "local_steps", "stale") if key in given]
    if len(ways) > 1:
        raise ConfigError(f"parallel: {ways[0]} and {ways[1]} cannot be combined in this version; choose one of them")
    for key in ("outer", "start", "overlap"):
        if key in given and "local_steps" not in given:
            raise ConfigError(f"parallel: {key}={given[key]!r} belongs to local steps; say local_steps=H, too")
    if given.get("overlap") and given.get("outer", "average") != "average":
        raise ConfigError("parallel: overlap is of the mean only; leave overlap out, or say outer='average'")


def _compress(value: Any) -> str | int | None:
    if isinstance(value, Mapping) and list(value) == ["powersgd"]:
        return _count("compress powersgd", value["powersgd"], 1)
    if value is None or (isinstance(value, str) and value in DTYPES):
        return value
    raise ConfigError(
        f"parallel: compress={value!r}; expected {_EXPECTED['compress']}{nearest(str(value), (*DTYPES,))}"
    )


def _outer(value: Any) -> dict[str, float] | None:
    settings = value
    if isinstance(value, str):
        settings = {"average": {}, "diloco": {"diloco": {}}}.get(value)
    if not isinstance(settings, Mapping) or not set(settings) <= {"diloco"}:
        raise ConfigError(f"parallel: outer={value!r}; expected {_EXPECTED['outer']}")
    if "diloco" not in settings:
        return None
    said = settings["diloco"] or {}
    if not isinstance(said, Mapping) or not set(said) <= set(_DILOCO):
        raise ConfigError(f"parallel: outer={value!r}; expected {_EXPECTED['outer']}")
    found = {**_DILOCO, **said}
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in found.values()):
        raise ConfigError(f"parallel: outer={value!r}; expected {_EXPECTED['outer']}")
    if not (found["lr"] > 0 and 0 <= found["momentum"] < 1):
        raise ConfigError(f"parallel: outer={value!r}; expected lr above 0, and momentum from 0 to below 1")
    return {name: float(number) for name, number in found.items()}


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"parallel: {name}={value!r}; expected a whole number, {least} or more")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"parallel: {name}={value!r}; expected true or false")
    return value


def _first(given: Mapping[str, Any]) -> str:
    key = next((key for key in given if key != "workers"), "workers")
    return f"{key}={given[key]!r}"
