"""Runs every loss that is understood and makes the table in docs/losses.md of what its mean divides by.

Write the table anew with: python tests/unit/test_losses_table.py
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wholebatch.step import losses, reductions

PAGE = Path(__file__).parents[2] / "docs" / "losses.md"
BEGIN, END = "<!-- table of losses: begin -->", "<!-- table of losses: end -->"
N, C, D = 6, 4, 3


class Case(NamedTuple):
    """One call of a loss: its arguments, its options, and what its mean divides by."""

    arguments: tuple[Any, ...]
    options: dict[str, Any]
    divisor: float


class Row(NamedTuple):
    """What the mean of a loss divides by, in words and in cases that show it."""

    words: str
    cases: Callable[[], list[Case]]


def real(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def share(*shape: int, seed: int = 0) -> Tensor:
    return real(*shape, seed=seed).sigmoid()


def signs(*shape: int) -> Tensor:
    return real(*shape, seed=9).sign()


LABELS = torch.tensor([0, 1, -100, 3, -100, 1])
CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
ELEMENTS = "number of elements"
SAMPLES = "number of samples"
CLASSES = "sum of the class weights (1 without `weight`) of the targets that are not ignored"


def two(first: Tensor, second: Tensor) -> Callable[[], list[Case]]:
    return lambda: [Case((first, second), {}, N * D)]


def weighted(by_weight: bool) -> Callable[[], list[Case]]:
    def cases() -> list[Case]:
        weight = share(N, D, seed=5)
        both = (real(N, D), real(N, D, seed=1))
        return [Case(both, {}, N * D), Case(both, {"weight": weight}, float(weight.sum()) if by_weight else N * D)]

    return cases


def bce(name: str) -> Callable[[], list[Case]]:
    def cases() -> list[Case]:
        output = share(N, D) if name == "binary_cross_entropy" else real(N, D)
        both = (output, share(N, D, seed=1))
        options: list[dict[str, Any]] = [{}, {"weight": share(D, seed=2)}, {"weight": share(N, 1, seed=3)}]
        if name == "binary_cross_entropy_with_logits":
            options.append({"pos_weight": 3 * share(D, seed=4)})
        return [Case(both, chosen, N * D) for chosen in options]

    return cases


def classes(log_probabilities: bool) -> Callable[[], list[Case]]:
    def cases() -> list[Case]:
        output, spread = real(N, C), real(N, C, 5)
        if log_probabilities:
            output, spread = output.log_softmax(1), spread.log_softmax(1)
        places = torch.arange(N * 5).reshape(N, 5) % C
        found = [
            Case((output, LABELS), {}, 4),
            Case((output, LABELS), {"weight": CLASS_WEIGHTS}, 0.5 + 1.0 + 4.0 + 1.0),
            Case((output, LABELS.clamp(min=0)), {"weight": CLASS_WEIGHTS, "ignore_index": 1}, 3 * 0.5 + 4.0),
            Case((spread, places), {"ignore_index": 2}, int((places != 2).sum())),
        ]
        if log_probabilities:
            return found
        smoothed = {"weight": CLASS_WEIGHTS, "label_smoothing": 0.1}
        return [
            *found,
            Case((output, LABELS), smoothed, 6.5),
            Case((output, real(N, C, seed=3).softmax(1)), {"weight": CLASS_WEIGHTS}, N),
            Case((spread, real(N, C, 5, seed=3).softmax(1)), {}, N * 5),
        ]

    return cases


def linear_cross_entropy() -> list[Case]:
    weight, features = real(C, D, seed=2), real(N, D)
    return [
        Case((features, weight, LABELS), {}, 4),
        Case((features, weight, LABELS), {"weight": CLASS_WEIGHTS}, 6.5),
    ]


def kl_div() -> list[Case]:
    both = (real(N, D).log_softmax(1), real(N, D, seed=1).softmax(1))
    return [Case(both, {}, N * D), Case(both, {"reduction": "batchmean"}, N)]


def ctc() -> list[Case]:
    log_probabilities = real(8, N, C).log_softmax(2)
    targets = torch.arange(N * 3).reshape(N, 3) % (C - 1) + 1
    lengths = torch.tensor([3, 1, 2, 3, 0, 1])
    return [Case((log_probabilities, targets, torch.full((N,), 8), lengths), {}, N)]


def margins(name: str) -> Callable[[], list[Case]]:
    def cases() -> list[Case]:
        output, labels = real(N, C), torch.arange(N) % C
        many = torch.cat([labels.unsqueeze(1), torch.full((N, C - 1), -1)], dim=1)
        given: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
            "multi_margin_loss": [((output, labels), {}), ((output, labels), {"weight": CLASS_WEIGHTS})],
            "multilabel_margin_loss": [((output, many), {})],
            "multilabel_soft_margin_loss": [
                ((output, (many >= 0).double()), {}),
                ((output, (many >= 0).double()), {"weight": CLASS_WEIGHTS}),
            ],
            "cosine_embedding_loss": [((output, real(N, C, seed=1), signs(N)), {})],
            "triplet_margin_loss": [((output, real(N, C, seed=1), real(N, C, seed=2)), {})],
            "triplet_margin_with_distance_loss": [((output, real(N, C, seed=1), real(N, C, seed=2)), {})],
        }
        return [Case(arguments, options, N) for arguments, options in given[name]]

    return cases


ROWS: dict[str, Row] = {
    "l1_loss": Row(f"{ELEMENTS}; with `weight`, sum of the weights", weighted(True)),
    "mse_loss": Row(f"{ELEMENTS}; with `weight`, sum of the weights", weighted(True)),
    "smooth_l1_loss": Row(ELEMENTS, two(real(N, D), real(N, D, seed=1))),
    "huber_loss": Row(f"{ELEMENTS}, also with `weight`", weighted(False)),
    "soft_margin_loss": Row(ELEMENTS, two(real(N, D), signs(N, D))),
    "hinge_embedding_loss": Row(ELEMENTS, two(real(N, D), signs(N, D))),
    "binary_cross_entropy": Row(f"{ELEMENTS}, also with `weight`", bce("binary_cross_entropy")),
    "binary_cross_entropy_with_logits": Row(
        f"{ELEMENTS}, also with `weight` or `pos_weight`", bce("binary_cross_entropy_with_logits")
    ),
    "poisson_nll_loss": Row(ELEMENTS, two(real(N, D), share(N, D, seed=1))),
    "gaussian_nll_loss": Row(
        ELEMENTS, lambda: [Case((real(N, D), real(N, D, seed=1), share(N, D, seed=2)), {}, N * D)]
    ),
    "kl_div": Row(f'{ELEMENTS}; with `reduction="batchmean"`, {SAMPLES}', kl_div),
    "margin_ranking_loss": Row(ELEMENTS, lambda: [Case((real(N, D), real(N, D, seed=1), signs(N, D)), {}, N * D)]),
    "cosine_embedding_loss": Row(SAMPLES, margins("cosine_embedding_loss")),
    "multi_margin_loss": Row(f"{SAMPLES}, also with `weight`", margins("multi_margin_loss")),
    "multilabel_margin_loss": Row(SAMPLES, margins("multilabel_margin_loss")),
    "multilabel_soft_margin_loss": Row(f"{SAMPLES}, also with `weight`", margins("multilabel_soft_margin_loss")),
    "triplet_margin_loss": Row(SAMPLES, margins("triplet_margin_loss")),
    "triplet_margin_with_distance_loss": Row(SAMPLES, margins("triplet_margin_with_distance_loss")),
    "cross_entropy": Row(
        f"{CLASSES}, smoothed or not; with probabilities as targets, number of positions", classes(False)
    ),
    "nll_loss": Row(CLASSES, classes(True)),
    "linear_cross_entropy": Row("as `cross_entropy`", linear_cross_entropy),
    "ctc_loss": Row(f"{SAMPLES}, each loss being divided by the length of its target (at least 1) first", ctc),
}


def measured(name: str, case: Case) -> tuple[float, float, float]:
    """Return (torch's mean, our sum, our weight) of a case."""
    function = getattr(F, name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="reduction: 'mean' divides")  # kl_div says what the table says
        mean = function(*case.arguments, **{"reduction": "mean", **case.options})
    call = losses.bind(functools.partial(function, **case.options))
    loss_sum, weight = call.summed(case.arguments[0], (None, *case.arguments[1:]), 0, N, True)
    return float(mean), float(loss_sum), float(weight)


def table() -> str:
    """Return the page's table, having run every loss."""
    modules = {function: module for module, function in reductions._MODULES.items()}
    lines = ["| loss of `torch.nn` | of `torch.nn.functional` | its mean divides by |", "|---|---|---|"]
    for name, row in ROWS.items():
        for case in divided(name):
            check(name, case)
        lines.append(f"| `{modules[name]}` | `{name}` | {row.words} |")
    return "\n".join(lines)


def check(name: str, case: Case) -> None:
    """Assert that torch's mean is our sum over the divisor, and that we count that divisor."""
    mean, loss_sum, weight = measured(name, case)
    assert weight == pytest.approx(case.divisor, rel=1e-12), (name, case.options)
    assert loss_sum / case.divisor == pytest.approx(mean, rel=1e-12, abs=1e-14), (name, case.options)


def divided(name: str) -> list[Case]:
    """Return the cases of a loss that this torch has."""
    return ROWS[name].cases() if hasattr(F, name) else []


@pytest.mark.parametrize("name", list(ROWS))
def test_the_mean_is_the_sum_over_the_divisor(name: str) -> None:
    for case in divided(name):
        check(name, case)


def test_every_loss_of_torch_with_a_reduction_is_in_the_table() -> None:
    assert set(ROWS) == set(reductions.RULES)
    for kind in map(functools.partial(getattr, nn), dir(nn)):
        if isinstance(kind, type) and "reduction" in inspect.signature(kind).parameters:
            known = next((base.__name__ for base in kind.__mro__ if base.__name__ in reductions._MODULES), None)
            assert known is not None, f"torch.nn.{kind.__name__} is not understood"
            assert reductions._MODULES[known] in ROWS
    for name in dir(F):
        function = getattr(F, name)
        if inspect.isfunction(function) and "reduction" in inspect.signature(function).parameters:
            assert name in ROWS, f"torch.nn.functional.{name} is not understood"


def test_the_page_holds_this_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    found = page.partition(BEGIN)[2].partition(END)[0].strip()
    assert found == table(), "docs/losses.md is out of date; write it anew: python tests/unit/test_losses_table.py"


def write() -> None:
    """Put the table into the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    write()
