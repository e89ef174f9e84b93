"""What torch says of inputs in another dtype than the model's, said so that one knows what to do."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from wholebatch.core import tree
from wholebatch.core.errors import InputError


def explain(error: RuntimeError, model: nn.Module, batch: Any) -> None:
    """Raise an ``InputError`` that names the dtypes, if they are what ``error`` is about; else return.

    Args:
        error: what the model, its loss or their backward pass raised.
        model: any module.
        batch: ``(inputs, *targets)``, or another batch that the model was run on.
    """
    if isinstance(error, InputError) or not any(word in str(error) for word in ("dtype", "type (", "scalar type")):
        return
    own = {_name(p) for p in model.parameters() if p.is_floating_point()}
    given = [(name, item) for name, item, _ in tree.arrays(batch) if isinstance(item, Tensor)]
    inputs = [(name, item) for name, item in given if name.startswith("batch[0]")] if len(given) > 1 else given
    other = [(name, item) for name, item in (inputs or given) if _name(item) not in own]
    wrong = other or [(name, item) for name, item in given if item.is_floating_point() and _name(item) not in own]
    if not own or not wrong:
        return
    name, item = wrong[0]
    what = name.replace("batch[0]", "the inputs", 1).replace("batch[1]", "the targets", 1)
    dtype = sorted(own)[0]
    or_model = f", or the model, e.g. model.to(torch.{_name(item)})" if item.is_floating_point() else ""
    raise InputError(
        f"{what} are {_name(item)} of shape {tuple(item.shape)}, but the model's parameters are "
        f"{' and '.join(sorted(own))}; convert the data, e.g. x.to(torch.{dtype}){or_model} "
        f"({str(error).splitlines()[0]})"
    ) from error


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
