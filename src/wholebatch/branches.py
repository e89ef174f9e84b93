"""Which batch size still pays: short continuations of a run from one checkpoint, at several batch sizes.

After Merrill et al. 2025, "Critical Batch Size Revisited" (arXiv:2505.23971), who measure by branched training what
the gradient noise scale only estimates. All branches draw the same samples in the same order, so that at the same
number of samples they differ by their batches alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wholebatch import api, config, saved
from wholebatch.checkpoint import RunState, load_plain_state
from wholebatch.config.build import Parts, build
from wholebatch.config.schema import Config
from wholebatch.core.batch_sizes import BatchSizes
from wholebatch.core.device import device_for
from wholebatch.core.errors import InputError, RunFolderError
from wholebatch.core.url import Url
from wholebatch.data import BatchLoader, Compose
from wholebatch.display.chart import Chart, Line, Panel
from wholebatch.loop.modes import begin_training
from wholebatch.schedule import scale_lr
from wholebatch.step import MicroBatches, Step

CLOSE = 0.02  # of the best loss: what is this near counts as reached


@dataclass(frozen=True)
class Branch:
    """One continuation.

    Attributes:
        batch_size: samples of a step.
        lr: the largest rate of the parameter groups, the same in every step.
        steps: how many were made.
        samples: how many samples they drew.
        points: (samples drawn, mean training loss since the point before).
        test: what the model reaches on the test data at the end: ``loss``, ``accuracy``, …
    """

    batch_size: int
    lr: float
    steps: int
    samples: int
    points: list[tuple[int, float]]
    test: dict[str, float]


@dataclass(frozen=True)
class Branches:
    """All continuations of ``run`` from its checkpoint after ``step`` steps."""

    run: str
    step: int
    lr_rule: str
    branches: list[Branch]

    @property
    def largest_close(self) -> int:
        """The largest batch size whose test loss is within 2 % of the best one's."""
        best = min(one.test["loss"] for one in self.branches)
        return max(one.batch_size for one in self.branches if one.test["loss"] <= best * (1 + CLOSE))

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain numbers and text, for JSON."""
        return {**asdict(self), "largest_close": self.largest_close}

    def lines(self) -> list[str]:
        """Return a table, and a sentence."""
        rows = [f"{'batch size':>10}  {'lr':>9}  {'steps':>6}  {'samples':>9}  {'train loss':>10}  {'test loss':>9}"]
        for one in self.branches:
            rows.append(
                f"{one.batch_size:>10,}  {one.lr:>9.3g}  {one.steps:>6,}  {one.samples:>9,}  "
                f"{one.points[-1][1]:>10.4f}  {one.test['loss']:>9.4f}"
            )
        found = f"up to a batch of {self.largest_close:,} the test loss is within {CLOSE:.0%} of the best"
        return [*rows, f"{found} after as many samples; one short run each, so small differences mean little"]

    def chart(self) -> Chart:
        """Return training loss against samples drawn."""
        lines = []
        for one in self.branches:
            x, y = np.array(one.points, dtype=np.float64).T
            lines.append(Line(f"batch size {one.batch_size:,}", x, y))
        title = f"{Path(self.run).name} from step {self.step:,}"
        return Chart([Panel("training loss", lines)], "samples drawn since the checkpoint", title, whole_x=True)


def branch(
    folder: Path | Url,
    sizes: Sequence[int],
    steps: int,
    *,
    lr_rule: str = "sqrt",
    lr: float | None = None,
    checkpoint: int | None = None,
    overrides: Sequence[str] = (),
) -> Branches:
    """Continue a run at several batch sizes; the run itself stays as it is.

    Args:
        folder: the run.
        sizes: batch sizes.
        steps: how many steps the largest of them makes; the others draw as many samples.
        lr_rule: how the rate follows the batch size from the run's: "linear", "sqrt" or "none".
        lr: the rate at the run's batch size, constant; that of the checkpoint, if none.
        checkpoint: the steps of the checkpoint to begin from; the newest, if none.
        overrides: ``key=value`` settings, such as micro_batch=64.

    Raises:
        RunFolderError: the folder is no run, or has no such checkpoint.
        InputError: sizes that are none, or a rate of 0 in the checkpoint.
    """
    if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes) or steps < 1:
        raise InputError(f"batch sizes {list(sizes)} and {steps} steps; expected different sizes and 1 step or more")
    settings = config.load_run(folder, overrides)
    state = saved.state_of(folder, checkpoint)
    samples = _drawn(max(sizes), steps, state)
    found = [_continue(settings, state, folder, size, samples, lr_rule, lr) for size in sorted(sizes)]
    return Branches(str(folder), state.more["recorder"]["steps"], lr_rule, found)


def _drawn(size: int, steps: int, state: RunState) -> int:
    """How many samples so many steps draw from the checkpoint's place on; the last batch of an epoch is shorter."""
    length, consumed = int(state.data_length or 0), int(state.loader["consumed"])
    drawn = 0
    while steps:
        cuts = BatchSizes(size).cuts(0, length, consumed)[:steps]
        drawn, steps, consumed = drawn + sum(end - begin for begin, end in cuts), steps - len(cuts), 0
    return drawn


def _continue(
    settings: Config, state: RunState, folder: Path | Url, size: int, samples: int, rule: str, lr: float | None
) -> Branch:
    parts = build(settings)
    where = device_for(settings.device, parts.model)
    try:
        load_plain_state(parts.model, state.model)
        parts.model.to(where)
        parts.optimizer.load_state_dict(copy.deepcopy(state.optimizer))  # which else shares its tensors
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split()[:40])
        raise RunFolderError(f"the run {folder} does not fit the model {settings.model.name}: {reason}") from error
    largest = _set_rates(settings, state, parts, size, rule, lr)
    micro = settings.resolved_micro_batch()
    step = Step(
        parts.model,
        parts.optimizer,
        parts.loss,
        micro_batch=micro,
        micro_batch_tokens=settings.micro_batch_tokens,
        clip_norm=settings.clip_norm,
        precision=settings.precision,
        seed=settings.seed,
    )
    step.calls = state.step["calls"]
    with _loader(settings, parts, size) as loader:
        loader.load_state_dict({**loader.state_dict(), **{key: state.loader[key] for key in ("epoch", "consumed")}})
        at_once = None if micro == "auto" else int(micro)
        made, drawn, points = _train(step, loader, samples, max(1, samples // 40), at_once, where)
    transform = parts.test_transform or Compose()
    with BatchLoader(parts.test_data, at_once or size, shuffle=False, transform=transform) as tested:
        test = api.evaluate(parts.model, tested, loss=parts.loss, device=where)
    return Branch(size, largest, made, drawn, points, test)


def _set_rates(settings: Config, state: RunState, parts: Parts, size: int, rule: str, lr: float | None) -> float:
    """Give every group the checkpoint's rate, scaled to the batch size; return the largest."""
    sizes, data = settings.sizes(), len(parts.train_data)
    present = sizes.at(state.loader["epoch"], state.loader["consumed"], data)
    groups = parts.optimizer.param_groups
    before = max(float(group["lr"]) for group in groups)
    if lr is None and before == 0:
        raise InputError(
            "the learning rate of this checkpoint is 0, the end of its schedule, so no branch would move; say a rate "
            "with --lr, or an earlier checkpoint with --checkpoint"
        )
    factor = 1.0 if rule == "none" else scale_lr(1.0, batch_size=size, reference=present, rule=rule)
    if lr is None and settings.batch_lr_rule is not None:
        factor *= scale_lr(1.0, batch_size=present, reference=sizes.first, rule=settings.batch_lr_rule)
    for group in groups:
        share = float(group["lr"]) / before if before else 1.0
        group["lr"] = (before if lr is None else lr) * share * factor
    return max(float(group["lr"]) for group in groups)


def _loader(settings: Config, parts: Parts, size: int) -> BatchLoader:
    return BatchLoader(
        parts.train_data,
        size,
        seed=settings.seed,
        transform=parts.train_transform or Compose(),
        mix=parts.mix,
        workers=settings.workers,
    )


def _train(
    step: Step, loader: BatchLoader, samples: int, apart: int, micro_batch: int | None, device: Any
) -> tuple[int, int, list[tuple[int, float]]]:
    """Draw ``samples``; return the steps, the samples, and the mean loss of stretches at least ``apart`` long."""
    made = drawn = since = 0
    loss_sum = weight = 0.0
    points: list[tuple[int, float]] = []
    begin_training(step.model)
    while drawn < samples:
        for window in loader.windows(micro_batch, device):
            report = step(MicroBatches(window, samples=window.samples))
            made, drawn, since = made + 1, drawn + report.samples, since + report.samples
            loss_sum, weight = loss_sum + float(report.loss_sum), weight + report.weight
            if since >= apart or drawn >= samples:
                points.append((drawn, loss_sum / weight if weight else math.nan))
                since, loss_sum, weight = 0, 0.0, 0.0
            if drawn >= samples:
                break
    return made, drawn, points
