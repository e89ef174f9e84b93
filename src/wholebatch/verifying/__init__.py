"""Is this training loop right? ``check_step`` compares someone's update with that of the whole batch, ``verify`` ours
over micro-batches and processes; each gives a :class:`StepCheck`, whose ``str`` is a table of cases."""

from wholebatch.verifying.check import check_step
from wholebatch.verifying.digests import DigestCheck
from wholebatch.verifying.ours import verify
from wholebatch.verifying.result import Case, StepCheck

__all__ = ["Case", "DigestCheck", "StepCheck", "check_step", "verify"]
