"""What a line of progress says, as fields that fit any width.

A narrow terminal gets short labels first and then fewer fields (:func:`fit`), or the same fields
on more lines (:func:`fold`); a field is never cut in two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wholebatch.core.record import Record, RunShape
from wholebatch.display import format as text

_GAP = "  "
_KNOWN = {"step", "epoch", "samples", "kind", "split", "loss", "accuracy", "lr", "seconds"}


@dataclass(frozen=True)
class Field:
    """A label and its value; ``short`` is the label on a narrow terminal; the highest ``drop`` goes first, 0 never."""

    label: str
    value: str
    short: str = ""
    short_value: str = ""
    drop: int = 0

    def shortened(self) -> Field:
        """The same with the short label and value."""
        return Field(self.short, self.short_value or self.value, drop=self.drop)

    def __str__(self) -> str:
        return f"{self.label} {self.value}" if self.label else self.value


def width_of(fields: Sequence[Field]) -> int:
    """The characters that ``fields`` take in one line."""
    return sum(len(str(field)) for field in fields) + len(_GAP) * max(0, len(fields) - 1)


def join(fields: Sequence[Field]) -> str:
    """All fields in one line."""
    return _GAP.join(str(field) for field in fields)


def fit(fields: Sequence[Field], width: int) -> list[Field]:
    """The fields, shortened and then dropped until they fit in one line of ``width`` characters.

    >>> fields = [Field("loss", "0.2143", "loss"), Field("", "12,340 samples/s", "", "12k/s", drop=1)]
    >>> join(fit(fields, 80)), join(fit(fields, 20)), join(fit(fields, 12))
    ('loss 0.2143  12,340 samples/s', 'loss 0.2143  12k/s', 'loss 0.2143')
    """
    kept = list(fields)
    if width_of(kept) > width:
        kept = [field.shortened() for field in kept]
    while width_of(kept) > width and any(field.drop for field in kept):
        kept.remove(max(kept, key=lambda field: field.drop))
    return kept


def fold(fields: Sequence[Field], width: int) -> list[list[Field]]:
    """The fields on as many lines as they need; shortened first where one line does not hold them.

    >>> fields = [Field("loss", "0.2143", "loss"), Field("lr", "0.0500", "lr")]
    >>> [join(line) for line in fold(fields, 12)]
    ['loss 0.2143', 'lr 0.0500']
    """
    if width_of(fields) > width:
        fields = [field.shortened() for field in fields]
    lines: list[list[Field]] = [[]]
    for field in fields:
        if lines[-1] and width_of([*lines[-1], field]) > width:
            lines.append([])
        lines[-1].append(field)
    return lines


def epoch_field(epoch: object, epochs: int) -> Field:
    """The epoch out of all, as wide as the last one will be.

    >>> str(epoch_field(3, 40)), str(epoch_field(3, 40).shortened())
    ('epoch  3/40', ' 3/40')
    """
    of = f"{epoch!s:>{len(str(epochs))}}/{epochs}"
    return Field("epoch", of, "", of)


def value_fields(values: Mapping[str, object], speed: float | None) -> list[Field]:
    """The running values: loss, accuracy, learning rate, samples per second, as far as they are known."""
    fields = []
    if "loss" in values:
        fields.append(Field("loss", text.number(values["loss"]), "loss", drop=1))
    if "accuracy" in values:
        fields.append(Field("accuracy", text.percent(values["accuracy"]), "acc", drop=3))
    if "lr" in values:
        fields.append(Field("lr", text.number(values["lr"]), "lr", drop=4))
    if speed is not None:
        fields.append(Field("", f"{text.rate(speed)} samples/s", "", f"{text.short_rate(speed)}/s", drop=5))
    return fields


def epoch_fields(run: RunShape, train: Record | None, test: Record | None, speed: float | None) -> list[Field]:
    """A finished epoch.

    The test split shows its accuracy and whatever else was measured there; its loss only where it
    has no accuracy.

    >>> run = RunShape(epochs=40, steps_per_epoch=3, samples_per_epoch=1437, batch_size=512, device="cpu")
    >>> train = {"epoch": 3, "loss": 0.2143, "accuracy": 0.9412, "lr": 0.05}
    >>> join(epoch_fields(run, train, {"epoch": 3, "accuracy": 0.95}, 12340))
    'epoch  3/40  loss 0.2143  accuracy 94.12 %  test accuracy 95.00 %  lr 0.0500  12,340 samples/s'
    """
    values = value_fields(train or {}, speed)
    ours = [field for field in values if field.label in ("loss", "accuracy")]
    rest = [field for field in values if field.label not in ("loss", "accuracy")]
    first = epoch_field((train or test or {}).get("epoch", "?"), run.epochs)
    return [first, *ours, *_test_fields(test or {}), *rest]


def step_fields(run: RunShape, record: Record) -> list[Field]:
    """The running loss of the steps since the record before, as ``log_every`` asks for it.

    >>> run = RunShape(epochs=2, steps_per_epoch=12500, samples_per_epoch=50000, batch_size=4, device="cpu")
    >>> join(step_fields(run, {"kind": "step", "epoch": 1, "step": 2000, "loss": 2.1938, "lr": 0.001}))
    'epoch 1/2  step 2,000  loss 2.1938  lr 0.0010'
    """
    step = f"{record.get('step', 0):,}"
    return [epoch_field(record.get("epoch", "?"), run.epochs), Field("step", step, drop=2), *value_fields(record, None)]


def _test_fields(test: Record) -> list[Field]:
    fields = []
    if "accuracy" in test:
        fields.append(Field("test accuracy", text.percent(test["accuracy"]), "test", drop=1))
    elif "loss" in test:
        fields.append(Field("test loss", text.number(test["loss"]), "test", drop=1))
    for name, value in test.items():
        if name not in _KNOWN and isinstance(value, (int, float)):
            fields.append(Field(f"test {name}", text.number(value), name, drop=2))
    return fields
