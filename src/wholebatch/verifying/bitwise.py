"""Bitwise steps on several numbers of processes, their bits compared: in turn within this process, or of a recipe."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import SGD

from wholebatch.config.build import Parts, build
from wholebatch.config.schema import Config
from wholebatch.core import tree
from wholebatch.core.cuts import parts
from wholebatch.data import BatchLoader, Compose
from wholebatch.step import Step
from wholebatch.step.pinned import pinned
from wholebatch.verifying.blame import mean_reduced
from wholebatch.verifying.cause import likely_cause
from wholebatch.verifying.digests import DigestCheck, digest_check
from wholebatch.verifying.in_turn import Rank, in_turn
from wholebatch.verifying.read_twice import read_twice
from wholebatch.verifying.result import Case
from wholebatch.verifying.trace import StepTrace, Tracer, first_difference, together
from wholebatch.verifying.worlds import world

LIMIT = 1800.0  # seconds for all steps of one number of processes
_STEPS = 3  # of a model that is verified in turn

TakeSteps = Callable[[Config, int], list[StepTrace]]


def verify_bitwise(
    model: nn.Module, loss: Any, batch: Any, micro_batch: int, processes: Sequence[int], others: Sequence[Case]
) -> DigestCheck:
    """Take a few bitwise steps with copies of ``model`` on 1 and other numbers of ranks, in turn; compare the bits."""
    counts = [1, *(count for count in processes if count != 1)]
    cases = [*others, *_reduced(copy.deepcopy(model), loss, batch)]
    with pinned(1, "fp32"):
        if len(cases) > len(others):  # the first thing to repair
            return DigestCheck(cases, _how(_STEPS, "this model", micro_batch, 1))
        traces = [(count, _in_turn(model, loss, batch, micro_batch, count)) for count in counts]
        piece = tree.cut(batch, 0, min(micro_batch, tree.count(batch)), tree.count(batch))
        return _compared(
            _how(_STEPS, "this model", micro_batch, 1), traces, cases, lambda: (copy.deepcopy(model), loss, piece)
        )


def _in_turn(model: nn.Module, loss: Any, batch: Any, micro_batch: int, count: int) -> list[StepTrace]:
    samples = tree.count(batch)

    def work(rank: Rank) -> list[StepTrace]:
        own, own_loss = copy.deepcopy((model, loss)) if isinstance(loss, nn.Module) else (copy.deepcopy(model), loss)
        held = [parameter for parameter in own.parameters() if parameter.requires_grad]
        step = Step(own, SGD(held, lr=0.01, momentum=0.9), own_loss, micro_batch=micro_batch, bitwise=True, group=rank)
        start, stop = parts(samples, rank.rank, rank.size, micro_batch, True)
        tracer = Tracer(own, _STEPS)
        for _ in range(_STEPS):
            step(tree.cut(batch, start, stop, samples))
            tracer.end_step()
        tracer.close()
        return tracer.steps

    random.seed(count)  # as in processes of their own, these begin anywhere
    np.random.seed(count)
    return together(in_turn(count, work))


def verify_recipe_bitwise(
    settings: Config, take_steps: TakeSteps, processes: Sequence[int], steps: int, limit: float = LIMIT
) -> DigestCheck:
    """Take the first steps of a configuration in each number of processes, really started; print what they came to.

    Args:
        settings: the configuration, ``bitwise``.
        take_steps: what each process runs: it takes so many steps of a configuration, and returns their trace.
        processes: numbers of them; the first is what the others are compared with.
        steps: how many.
        limit: seconds that each number of processes may take.

    Raises:
        ConfigError: the configuration names something that does not exist, or the time was over.
        InputError: bitwise mode refuses the model or the data.
    """
    micro_batch, threads = int(settings.resolved_micro_batch()), settings.threads or 1
    made = _built(settings)
    transform = made.train_transform or Compose()
    batch, case = read_twice(BatchLoader(made.train_data, settings.sizes(), seed=settings.seed, transform=transform))
    samples = tree.count(batch)
    traces = [(count, together(world(count, take_steps, settings, steps, limit=limit))) for count in processes]

    def fresh() -> tuple[nn.Module, Any, Any]:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        device = device if settings.device == "auto" else torch.device(settings.device)
        piece = tree.to_device(tree.cut(batch, 0, min(micro_batch, samples), samples), device)
        return _built(settings).model.to(device), made.loss, piece

    how = _how(len(traces[0][1]), settings.recipe, micro_batch, threads)
    pieces = -(-samples // micro_batch)
    if pieces < max(processes):
        how += f"\na batch has {pieces} micro-batch{'' if pieces == 1 else 'es'}: further processes have nothing to do"
    with pinned(threads, settings.precision):
        check = _compared(how, traces, [case], fresh)
    check.show()
    return check


def _built(settings: Config) -> Parts:
    with pinned(settings.threads or 1, settings.precision):
        return build(settings)


def _how(steps: int, what: str, micro_batch: int, threads: int) -> str:
    took = f"{steps} step{'' if steps == 1 else 's'} of {what}"
    return f"{took} with bitwise=true micro_batch={micro_batch} threads={threads}"


def _compared(
    how: str,
    traces: Sequence[tuple[int, Sequence[StepTrace]]],
    others: Sequence[Case],
    fresh: Callable[[], tuple[nn.Module, Any, Any]],
) -> DigestCheck:
    """The check; where bits differ, what the first difference is and why."""
    first = traces[0][1]
    for _, trace in traces[1:] or traces:
        model, loss, piece = fresh()
        difference = first_difference(first, trace, model)
        if difference is None:
            continue
        unstable = next((case.meaning for case in others if not case.ok), "")
        model.train()
        cause = unstable or likely_cause(model, loss, piece, difference)
        return digest_check(how, traces, others, difference, cause)
    return digest_check(how, traces, others, None, "")


def _reduced(model: nn.Module, loss: Any, batch: Any) -> list[Case]:
    """Whether the loss is reduced already: then its mean stands for a wrong weight, on any number of processes."""
    said = mean_reduced(model, loss, batch)
    return [Case("the loss", np.inf, np.nan, False, said)] if said else []
