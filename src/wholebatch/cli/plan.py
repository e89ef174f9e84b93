"""``wholebatch plan``: how much memory a recipe's step takes, and the largest micro-batch that fits."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
Json = Annotated[bool, typer.Option("--json", help="Numbers of bytes as JSON.")]


def plan(
    recipe: Recipe = None,
    words: Words = None,
    files: Files = None,
    memory: Memory = None,
    recompute: Recompute = None,
    shard: Shard = 1,
    as_json: Json = False,
) -> Work:
    """Say how much memory a step takes and what fits, without running the model."""
    given = join(recipe, words)
    said = [word.partition("=")[2] for word in given if word.startswith("memory=")]
    rest = [word for word in given if not word.startswith("memory=")]
    return partial(_plan, rest, files or [], memory or (said[-1] if said else None), recompute, shard, as_json)


def _plan(
    words: list[str], files: list[Path], memory: str | None, recompute: str | None, shard: int, as_json: bool
) -> None:
    config = load_config(words, files)
    from wholebatch import step
    from wholebatch.config.build import build
    from wholebatch.data import BatchLoader

    parts = build(config)
    batch = next(iter(BatchLoader(parts.train_data, 2, transform=parts.train_transform)))

    def planned(**other: Any) -> Plan:
        said = {"precision": parts.precision, "recompute_layers": recompute, "shard": shard} | other
        return step.plan(parts.model, batch, parts.optimizer, memory=memory, loss=parts.loss, **said)

    plain = planned()
    if as_json:
        print(json.dumps(plain.as_dict(config.sizes().largest or config.sizes().first)))
        return
    print(f"{config.model.name} on {config.data.name}, {type(parts.optimizer).__name__}, {parts.precision}")
    for line in _sizes(plain, config.sizes().largest or config.sizes().first):
        print(line)
    print(
        "\nwith instead" + " " * 14 + "a sample    fits at once" if memory else "\nwith instead" + " " * 14 + "a sample"
    )
    for name, other in _others(parts.precision, recompute, shard, parts.model).items():
        try:
            changed = planned(**other)
        except ConfigError:
            continue
        fits = f"{changed.largest():>16,}" if memory else ""
        print(f"{name:<24}{_human(changed.activations_per_sample):>10}{fits}")


def _sizes(plan: Plan, batch_size: int) -> list[str]:
    names = ("parameters", "gradients", "optimizer", "buffers")
    lines = [f"{name:<24}{_human(getattr(plan, name)):>10}" for name in names]
    lines.append(f"{'activations, a sample':<24}{_human(plan.activations_per_sample):>10}")
    lines.append(f"{'activations, fixed':<24}{_human(plan.activations_fixed):>10}")
    if plan.memory is None:
        lines.append(f"{f'peak, {batch_size:,} at once':<24}{_human(plan.peak(batch_size)):>10}")
        return lines
    largest = plan.largest()
    if not largest:
        return [*lines, f"a single sample takes {_human(plan.peak(1))}, which {_human(plan.memory)} do not hold"]
    micro = min(largest, batch_size)
    pieces = -(-batch_size // micro)
    lines.append(f"{f'fits {_human(plan.memory)} at once':<24}{largest:>10,} samples")
    lines.append(f"{f'peak, {micro:,} at once':<24}{_human(plan.peak(micro)):>10}")
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


def _human(size: int) -> str:
    """A number of bytes as people read it.

    >>> _human(1536), _human(5 * 2**30)
    ('1.5 KiB', '5.0 GiB')
    """
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
