"""``wholebatch plan``: how much memory a recipe's step takes, and the largest micro-batch that fits."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wholebatch.cli.plan_processes import Answer, Asked, human
from wholebatch.cli.words import Files, Recipe, Words, Work, join, load_config
from wholebatch.core.errors import ConfigError

if TYPE_CHECKING:
    from wholebatch.step import Plan

Memory = Annotated[
    str | None, typer.Option("--memory", metavar="SIZE", help="What there is, such as 8GiB; also written memory=8GiB.")
]
Recompute = Annotated[
    str | None, typer.Option("--recompute", metavar="LAYERS", help="Layers that run again in the backward pass.")
]
Shard = Annotated[int, typer.Option("--shard", metavar="N", min=1, help="Spread the model over N processes.")]
Processes = Annotated[
    int | None, typer.Option("--processes", metavar="N", min=1, help="Forecast a step on so many processes.")
]
Link = Annotated[
    str | None, typer.Option("--link", metavar="RATE", help="What each one's link carries each way, such as 400Gb/s.")
]
Latency = Annotated[float, typer.Option("--latency", metavar="µs", min=0, help="Of one message, in microseconds.")]
Rate = Annotated[
    float | None,
    typer.Option("--samples-per-second", metavar="X", min=1e-9, help="One process's speed; measured, if not said."),
]
Json = Annotated[bool, typer.Option("--json", help="Numbers of bytes as JSON.")]


def plan(
    recipe: Recipe = None,
    words: Words = None,
    files: Files = None,
    memory: Memory = None,
    recompute: Recompute = None,
    shard: Shard = 1,
    processes: Processes = None,
    link: Link = None,
    latency: Latency = 20.0,
    samples_per_second: Rate = None,
    as_json: Json = False,
) -> Work:
    """Say how much memory a step takes and what fits, without running the model; what many processes would give."""
    given = join(recipe, words)
    said = [word.partition("=")[2] for word in given if word.startswith("memory=")]
    rest = [word for word in given if not word.startswith("memory=")]
    asked = Asked(processes, link, latency, samples_per_second, shard)
    return partial(_plan, rest, files or [], memory or (said[-1] if said else None), recompute, asked, as_json)


def _plan(
    words: list[str], files: list[Path], memory: str | None, recompute: str | None, asked: Asked, as_json: bool
) -> None:
    asked.check()
    shard, config = asked.shard, load_config(words, files)
    from wholebatch import step
    from wholebatch.config.build import build
    from wholebatch.data import BatchLoader

    parts = build(config)
    batch = next(iter(BatchLoader(parts.train_data, 2, transform=parts.train_transform)))

    def planned(**other: Any) -> Plan:
        said = {"precision": parts.precision, "recompute_layers": recompute, "shard": shard} | other
        return step.plan(parts.model, batch, parts.optimizer, memory=memory, loss=parts.loss, **said)

    plain = planned()
    answer = None if asked.processes is None else Answer(config, parts, planned(shard=1), asked)
    if as_json:
        found = plain.as_dict(config.sizes().largest or config.sizes().first)
        print(json.dumps(found if answer is None else found | {"processes": answer.as_dict()}))
        return
    print(f"{config.model.name} on {config.data.name}, {type(parts.optimizer).__name__}, {parts.precision}")
    for line in _sizes(plain, config.sizes().largest or config.sizes().first):
        print(line)
    if answer is not None:
        print("\n" + "\n".join(answer.lines()))
        return
    print(
        "\nwith instead" + " " * 14 + "a sample    fits at once" if memory else "\nwith instead" + " " * 14 + "a sample"
    )
    for name, other in _others(parts.precision, recompute, shard, parts.model).items():
        try:
            changed = planned(**other)
        except ConfigError:
            continue
        fits = f"{changed.largest():>16,}" if memory else ""
        print(f"{name:<24}{human(changed.activations_per_sample):>10}{fits}")


def _sizes(plan: Plan, batch_size: int) -> list[str]:
    names = ("parameters", "gradients", "optimizer", "buffers")
    lines = [f"{name:<24}{human(getattr(plan, name)):>10}" for name in names]
    lines.append(f"{'activations, a sample':<24}{human(plan.activations_per_sample):>10}")
    lines.append(f"{'activations, fixed':<24}{human(plan.activations_fixed):>10}")
    if plan.memory is None:
        lines.append(f"{f'peak, {batch_size:,} at once':<24}{human(plan.peak(batch_size)):>10}")
        return lines
    largest = plan.largest()
    if not largest:
        return [*lines, f"a single sample takes {human(plan.peak(1))}, which {human(plan.memory)} do not hold"]
    micro = min(largest, batch_size)
    pieces = -(-batch_size // micro)
    lines.append(f"{f'fits {human(plan.memory)} at once':<24}{largest:>10,} samples")
    lines.append(f"{f'peak, {micro:,} at once':<24}{human(plan.peak(micro)):>10}")
    return [*lines, f"{f'batch of {batch_size:,}':<24}{pieces:>10,} micro-batch{'es' if pieces > 1 else ''}"]


def _others(precision: str, recompute: str | None, shard: int, model: Any) -> dict[str, dict[str, Any]]:
    """What could be changed, one thing at a time."""
    others: dict[str, dict[str, Any]] = {}
    if precision != "bf16":
        others["precision=bf16"] = {"precision": "bf16"}
    children = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    if recompute is None and children:
        others["every layer recomputed"] = {"recompute_layers": ", ".join(children)}
    return others | {f"--shard {ways}": {"shard": ways} for ways in (2, 4, 8) if ways != shard}
