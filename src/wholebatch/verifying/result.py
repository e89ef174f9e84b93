"""What a check found: cases, each with its relative error and its factor, and the table of them."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field

from wholebatch.display.output import Output


@dataclass(frozen=True)
class Case:
    """One window that was compared with the exact update.

    Attributes:
        name: what the window is.
        error: norm of the difference, relative to the norm of the exact gradient; NaN where nothing was compared.
        factor: projection on the exact gradient, ``found · exact / exact · exact``: 1 where it is right; NaN
            where the direction alone was compared.
        ok: whether the error is below the tolerance of the dtype, or the loop refused the window.
        meaning: what such an error usually means, or why nothing was compared; "" where there is nothing to say.
    """

    name: str
    error: float
    factor: float
    ok: bool
    meaning: str = ""


@dataclass(frozen=True)
class StepCheck:
    """The cases of one check; ``str()`` of it is the table.

    >>> check = StepCheck([Case("as given", 1e-16, 1.0, True), Case("short window", 0.5, 0.5, False, "divided twice")])
    >>> check.ok, check.error
    (False, 0.5)
    >>> print(check)
    case          relative error  factor
    as given             1.0e-16   ×1.00
    short window            0.50   ×0.50  wrong: divided twice
    wrong in 1 of 2 cases
    """

    cases: list[Case]
    how: str = field(default="", compare=False)

    @property
    def ok(self) -> bool:
        """Whether every case is right."""
        return all(case.ok for case in self.cases)

    @property
    def error(self) -> float:
        """The worst relative error; infinite where a gradient was not finite."""
        errors = [case.error for case in self.cases if not math.isnan(case.error)]
        return max(errors, default=0.0)

    def show(self) -> None:
        """Print the table; a stream that is closed, or that lacks its signs, is no reason to stop."""
        output = Output(sys.stdout)
        output.write(f"{self}\n")
        output.flush()

    def __str__(self) -> str:
        width = max([len(case.name) for case in self.cases] + [len("case")])
        lines = [f"{'case':{width}}  relative error  factor"]
        told: set[str] = set()
        for case in self.cases:
            verdict = "wrong" if not case.ok else ""
            meaning = "as above" if case.meaning in told else case.meaning
            told |= {case.meaning} - {""}
            said = ": ".join(part for part in (verdict, meaning) if part)
            row = f"{case.name:{width}}  {_error(case.error):>14}  {_factor(case.factor):>6}  {said}"
            lines.append(row.rstrip())
        wrong = sum(not case.ok for case in self.cases)
        lines.append(f"wrong in {wrong} of {len(self.cases)} cases" if wrong else "right in every case")
        return "\n".join([*([self.how] if self.how else []), *lines])


def _error(value: float) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "not finite"
    return f"{value:.1e}" if value < 0.01 else f"{value:.2f}"


def _factor(value: float) -> str:
    return f"×{value:.2f}" if math.isfinite(value) else "–"
