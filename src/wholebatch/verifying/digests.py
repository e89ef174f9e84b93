"""What bitwise verification found: a digest for each number of processes, and where and why the first one differs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from wholebatch.verifying.result import Case, StepCheck
from wholebatch.verifying.trace import Difference, StepTrace


@dataclass(frozen=True)
class DigestCheck(StepCheck):
    """The cases of a bitwise check; the error of one is 0 (every bit is the same) or infinite.

    Attributes:
        digests: (number of processes, digest of the weights after the last step).
        difference: where the first number of processes that differs does so first; None where all are equal.
        cause: what probably made the difference; "".
    """

    digests: list[tuple[int, str]] = field(default_factory=list)
    difference: Difference | None = None
    cause: str = ""

    def __str__(self) -> str:
        lines = [self.how, *([f"{'processes':>9}  digest of the weights"] if self.digests else [])]
        for place, ((count, digest), case) in enumerate(zip(self.digests, self._compared(), strict=True)):
            said = "" if not place else "  equal" if case.ok else "  differs"
            lines.append(f"{count:>9}  {digest}{said}")
        if self.difference is not None:
            lines += [f"first difference: {self.difference}", f"likely cause: {self.cause}"]
        lines += [f"wrong: {case.meaning}" for case in self.cases[len(self.digests) :] if not case.ok]
        return "\n".join([*lines, "the same bits every time"] if self.ok else lines)

    def _compared(self) -> list[Case]:
        return self.cases[: len(self.digests)]


def digest_check(
    how: str,
    traces: Sequence[tuple[int, Sequence[StepTrace]]],
    others: Sequence[Case],
    difference: Difference | None,
    cause: str,
) -> DigestCheck:
    """Return the check of several numbers of processes; ``others`` are further cases, such as data read twice."""
    first = traces[0][1]
    cases = []
    for count, trace in traces:
        same = all(a.same_bits(b) for a, b in zip(first, trace, strict=True))
        name = f"{count} process{'' if count == 1 else 'es'}"
        cases.append(Case(name, 0.0 if same else math.inf, math.nan, same, "" if same else cause))
    digests = [(count, trace[-1].digest) for count, trace in traces]
    return DigestCheck([*cases, *others], how, digests, difference, cause)
