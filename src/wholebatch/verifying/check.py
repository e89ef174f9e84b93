"""Whether someone's own code for one update computes the update of the whole batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wholebatch.core import processes
from wholebatch.core.digest import sum_of_bits
from wholebatch.core.errors import BatchError, InputError, InputTypeError, WrongStepError
from wholebatch.step.options import check_clip_norm
from wholebatch.verifying.borrow import Borrowed, random_state_kept, seed_alike
from wholebatch.verifying.exact import Vector, Window, difference, exact_window, inner, norm, scaled
from wholebatch.verifying.meaning import meaning
from wholebatch.verifying.result import Case, StepCheck
from wholebatch.verifying.variants import Pieces, fresh, masked, variants
from wholebatch.verifying.watch import Watch

TakeStep = Callable[[nn.Module, list[Any]], Any]

# Relative errors up to these are rounding. A loop may well round to float32 inside of a float64 model (a divisor that
# is a float32 tensor, logits in float32), and a deep net amplifies it; the mistakes looked for are above 1e-2.
TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-3}
_COARSE = 5e-2  # half precision


def check_step(
    take_step: TakeStep,
    model: nn.Module,
    batches: Iterable[Any],
    loss: Any,
    *,
    strict: bool = False,
    lr: float | None = None,
    clip_norm: float | None = None,
    bitwise: bool = False,
    show: bool = True,
) -> StepCheck:
    """Compare one update of someone's loop with that of the whole batch, on the window given and on hard ones.

    ``take_step(model, batches)`` makes one update from a list of micro-batches. It is called with a copy whose weights
    are float64 (float32 if the model insists), in training mode but with dropout off and batch norm frozen; an
    optimizer that was made before, for the model itself, works on that copy as well. What is compared is the gradient
    that an optimizer's ``step`` finds, so that no learning rate is needed. A loop that updates the weights by hand
    is compared by their change where ``lr`` is given, and by its direction alone otherwise.

    The window given is run twice on one copy, so that a forgotten ``zero_grad`` shows; then come an uneven last
    micro-batch, a short window, another split, and masked labels where the loss has them. The model, the batches and
    the random state are left as they were; so are the state and the rate of an optimizer that was there before.

    On several processes every one calls this with its own micro-batches, and the whole batch is that of all.

    Args:
        take_step: the code that makes one update.
        model: the module it trains.
        batches: the micro-batches of one window.
        loss: as :class:`wholebatch.Step` takes it: what the whole batch's loss is.
        strict: raise where a case is wrong.
        lr: the learning rate of an update by hand.
        clip_norm: the norm to which the loop clips the whole gradient.
        bitwise: add a case: the window given, made twice from the same state and seeds, must have the same bits.
        show: print the table.

    >>> model = nn.Linear(3, 2)
    >>> def take_step(model, batches):
    ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ...     for x, y in batches:
    ...         (nn.functional.cross_entropy(model(x), y) / 4).backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    >>> window = [(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])) for _ in range(4)]
    >>> check = check_step(take_step, model, window, nn.CrossEntropyLoss(), show=False)
    >>> [case.ok for case in check.cases]
    [True, True, False, False, False, False, False]

    Raises:
        WrongStepError: ``strict``, and a case is wrong; the message is the table.
        InputError: no micro-batches, or an exact gradient that is not finite.
        InputTypeError: ``model`` is no module, or ``take_step`` cannot be called.
    """
    with random_state_kept():
        pieces = _checked(take_step, model, batches, lr, clip_norm)
        attempts = _attempts(model)
        for place, dtype in enumerate(attempts):
            checker = _Checker(take_step, Borrowed(model, loss), loss, dtype, lr, clip_norm, len(pieces))
            try:
                given = checker.window("as given", pieces, twice=True)
            except Exception:
                if place + 1 < len(attempts):
                    continue  # the model, the loss or the loop insists on the dtype it has
                raise
            cases = [*given, *([checker.again(pieces)] if bitwise else []), *checker.hard(pieces)]
            break
    check = StepCheck(cases, checker.how())
    if show and processes.current().rank == 0:
        check.show()
    if strict and not check.ok:
        raise WrongStepError(f"this loop does not take the step of the whole batch\n{check}")
    return check


def _checked(take_step: Any, model: Any, batches: Any, lr: Any, clip_norm: Any) -> Pieces:
    if not isinstance(model, nn.Module):
        raise InputTypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    if not callable(take_step):
        raise InputTypeError(f"take_step is a {type(take_step).__name__}; give a function take_step(model, batches)")
    if isinstance(batches, Tensor | dict | str):
        raise InputTypeError(f"batches is a {type(batches).__name__}; give a list of micro-batches")
    pieces = list(batches)
    if not pieces:
        raise BatchError("batches is empty; give the micro-batches of one window")
    if lr is not None and not lr > 0:
        raise InputError(f"lr={lr!r}; expected a positive number, or None to compare the direction alone")
    check_clip_norm(clip_norm)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("the model has no parameter that requires a gradient")
    return pieces


def _attempts(model: nn.Module) -> list[torch.dtype | None]:
    """The dtypes to try. An engine over processes has buffers for its gradients, which a new dtype would not fit."""
    return [None] if processes.current().size > 1 else [torch.float64, None]


@dataclass
class _Checker:
    """One check in one dtype."""

    take_step: TakeStep
    borrowed: Borrowed
    loss: Any
    dtype: torch.dtype | None  # None: the model's own
    lr: float | None
    clip_norm: float | None
    configured: int
    by_hand: bool = False
    seen: torch.dtype = torch.float64
    half: torch.dtype | None = None  # the half precision in which the loop computes, as under autocast

    def hard(self, pieces: Pieces) -> list[Case]:
        """The hard variants, each on a copy of its own."""
        cases: list[Case] = []
        for name, window in variants(pieces):
            cases += self._or_refused(name, window)
        for name, window in masked(pieces, self.loss):
            if self._masks(pieces, window):
                cases += self._or_refused(name, window)
        return cases

    def again(self, pieces: Pieces) -> Case:
        """The window made twice, each time from the same state: whether the weights have the same bits."""
        seen: list[dict[str, int]] = []
        for _ in range(2):
            with self.borrowed.lend(self.dtype) as model:
                held = [p for p in model.parameters() if p.requires_grad]
                with Watch(held), torch.enable_grad():  # which lends an optimizer that was there before a fresh state
                    seed_alike()
                    self.take_step(model, fresh(pieces, self.dtype))
                seen.append({label: int(sum_of_bits(p)) for label, p in model.named_parameters()})
        differing = [label for label, bits in seen[0].items() if seen[1].get(label) != bits]
        said = (
            f"{differing[-1]} has other bits the second time: a kernel that is not deterministic, state that is kept "
            "between steps, or a draw from a generator of its own"
            if differing
            else ""
        )
        return Case("twice from the same state, bit for bit", math.nan, math.nan, not differing, said)

    def _or_refused(self, name: str, window: Pieces) -> list[Case]:
        try:
            return self.window(name, window, twice=False)
        except Exception as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
            return [Case(name, math.nan, math.nan, True, f"not compared, the loop refuses it ({said})")]

    def _masks(self, pieces: Pieces, window: Pieces) -> bool:
        """Whether the loss knows such labels: the weight falls, and the gradient stays finite."""
        with self.borrowed.lend(self.dtype) as model:
            parameters = [p for p in model.parameters() if p.requires_grad]
            try:
                whole, less = (
                    exact_window(model, self.loss, fresh(some, self.dtype), parameters, processes.Alone())
                    for some in (pieces, window)
                )
            except Exception:
                return False
            return less.weight < whole.weight and math.isfinite(norm(less.exact))

    def window(self, name: str, pieces: Pieces, twice: bool) -> list[Case]:
        """Run a window on one copy, or twice on the same one; return a case for each."""
        with self.borrowed.lend(self.dtype) as model:
            named = [(label, p) for label, p in model.named_parameters() if p.requires_grad]
            parameters = [parameter for _, parameter in named]
            self.seen = next((p.dtype for p in parameters if p.is_floating_point()), torch.float64)
            cases: list[Case] = []
            before: Vector | None = None
            with Watch(parameters) as watch:
                for again in range(1 + twice):
                    label = f"{name}, {len(pieces)} micro-batches" if not again and twice else name
                    label = "the same window once more" if again else label
                    case, before = self._once(label, model, named, pieces, watch, before)
                    cases.append(case)
            return cases

    def _once(
        self, name: str, model: nn.Module, named: Sequence[tuple[str, Tensor]], pieces: Pieces, watch: Watch,
        before: Vector | None,
    ) -> tuple[Case, Vector | None]:  # fmt: skip
        parameters = [parameter for _, parameter in named]
        seed_alike()
        self.borrowed.restore_dtypes()
        window = exact_window(model, self.loss, fresh(pieces, self.dtype), parameters, processes.current())
        if not math.isfinite(norm(window.exact)):
            raise InputError(f"the exact gradient of the window {name!r} is not finite; look at the data and the model")
        weights = [parameter.detach().clone() for parameter in parameters]
        watch.forget()
        seed_alike()
        with torch.enable_grad():
            self.take_step(model, fresh(pieces, self.dtype))
        self.half = watch.half or self.half
        if watch.found:
            found, window = _found(watch, window)
            return self._compare(name, found, window, before, watch.steps), found
        now = dict(model.named_parameters())
        change = [(w.double() - now.get(n, p).detach().double()) for (n, p), w in zip(named, weights, strict=True)]
        return self._compare_change(name, change, weights, window, before)

    def _compare(self, name: str, found: Vector, window: Window, before: Vector | None, steps: int = 1) -> Case:
        exact = min(self._clipped(window.exact), key=lambda vector: difference(found, vector))
        size = norm(exact)
        error = difference(found, exact) / size if size else (math.inf if norm(found) else 0.0)
        error = error if math.isfinite(error) else math.inf
        factor = inner(found, exact) / size**2 if size and math.isfinite(error) else (math.nan if error else 1.0)
        ok = error <= self._tolerance() and steps <= 1  # small steps may well add up to the gradient, but are several
        return self._case(name, error, factor, ok, found, window, before, steps)

    def _compare_change(
        self, name: str, change: Vector, weights: Sequence[Tensor], window: Window, before: Vector | None
    ) -> tuple[Case, Vector | None]:
        """An update by hand: its size is compared where the learning rate is known, else its direction."""
        moved, size = norm(change), norm(window.exact)
        if moved == 0:
            dropped = "no step was made: these samples never train" if size else ""
            return Case(name, 1.0 if size else 0.0, 0.0 if size else 1.0, not size, dropped), None
        self.by_hand = True
        rounding = 4 * torch.finfo(self.seen).eps * norm([w.double() for w in weights]) / moved
        if self.lr is not None:
            found = scaled(change, 1 / self.lr)
            case = self._compare(name, found, window, before)
            if not case.ok and case.error <= self._tolerance() + rounding:
                case = Case(name, case.error, case.factor, True)
            return case, found
        projection = inner(change, window.exact) / size**2 if size else 0.0
        along = scaled(window.exact, projection if projection > 0 else 0.0)
        error = difference(change, along) / moved if math.isfinite(moved) else math.inf
        found = scaled(change, size / moved) if math.isfinite(moved) and size else change
        ok = error <= self._tolerance() + rounding
        return self._case(name, error, math.nan, ok, found, window, None, 1), None

    def _case(
        self, name: str, error: float, factor: float, ok: bool, found: Vector, window: Window, before: Vector | None,
        steps: int,
    ) -> Case:  # fmt: skip
        if ok:
            return Case(name, error, factor, True)
        said = meaning(found, window, configured=self.configured, before=before, clip_norm=self.clip_norm)
        if steps > 1:
            said = f"the optimizer stepped {steps} times in one window (their gradients are added up here)"
        return Case(name, error, factor, False, said)

    def _clipped(self, exact: Vector) -> list[Vector]:
        """What clipping to ``clip_norm`` gives, with torch's 1e-6 beside the norm and without."""
        if self.clip_norm is None:
            return [exact]
        size = norm(exact)
        return [scaled(exact, min(1.0, self.clip_norm / (size + small))) if size else exact for small in (1e-6, 0.0)]

    def _tolerance(self) -> float:
        return _COARSE if self.half else TOLERANCES.get(self.seen, _COARSE)

    def how(self) -> str:
        """The line above the table: what was compared, and on what."""
        dtype = str(self.seen).removeprefix("torch.")
        if not self.by_hand:
            what = "the gradient that the optimizer's step finds"
        elif self.lr is not None:
            what = f"the change of the weights at lr={self.lr:g}"
        else:
            what = "the direction in which the weights moved (say lr= to compare its size)"
        clipped = f", clipped to {self.clip_norm:g}" if self.clip_norm is not None else ""
        half = f" (the loop computes in {str(self.half).removeprefix('torch.')})" if self.half else ""
        return f"{what}{clipped}, against the whole batch's; a copy in {dtype}{half}, dropout off, batch norm frozen"


def _found(watch: Watch, window: Window) -> tuple[Vector, Window]:
    """What was found, and the window, of those parameters that some optimizer holds."""
    held = sorted(watch.found)
    exact = [window.exact[place] for place in held]
    found = []
    for place, reference in zip(held, exact, strict=True):
        gradient = watch.found[place]
        found.append(torch.zeros_like(reference) if gradient is None else gradient)
    for name in ("exact", "means", "by_samples", "last"):
        setattr(window, name, [getattr(window, name)[place] for place in held])
    return found, window
