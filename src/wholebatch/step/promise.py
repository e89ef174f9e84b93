"""What makes a result depend on the micro-batch is said once, naming the layers and the ways out."""

from __future__ import annotations

import warnings

from torch import nn

from wholebatch.core.errors import PromiseWarning
from wholebatch.step.grouped_norm import GroupedNorm

_BatchNorm = nn.modules.batchnorm._BatchNorm


class Promise:
    """Knows the layers of a model that break the promise, and what was said of them already."""

    def __init__(self, model: nn.Module, says: bool) -> None:
        modules = list(model.named_modules())
        self.batch_norms = [(name, module) for name, module in modules if isinstance(module, _BatchNorm)]
        self._by_frequency = [
            name
            for name, module in modules
            if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.scale_grad_by_freq
        ]
        self._says = says
        self._told: set[str] = set()
        self.at_risk = bool(self.batch_norms or self._by_frequency)

    def cut(self) -> None:
        """The whole batch is cut into several parts."""
        names = [
            name
            for name, module in self.batch_norms
            if not isinstance(module, GroupedNorm) and (module.training or module.running_mean is None)
        ]
        if names:
            self._say(
                "batch norm",
                f"{_listed(names)} normalise each micro-batch by itself (batch norm in training mode), so the result "
                "depends on micro_batch. Ways out: wholebatch.convert_batchnorm(model, group=32), which normalises "
                "groups of fixed size; group, layer or instance norm; batch norm in evaluation mode; or micro_batch as "
                "large as the batch",
            )
        if self._by_frequency:
            self._say(
                "frequency",
                f"{_listed(self._by_frequency)} divide gradients by how often an index occurs in the micro-batch "
                "(scale_grad_by_freq=True), so the result depends on micro_batch. Ways out: scale_grad_by_freq=False; "
                "or micro_batch as large as the batch",
            )

    def knows_of_draws(self) -> bool:
        """Whether unkeyed draws were said already."""
        return "draws" in self._told

    def drawn(self, names: list[str]) -> None:
        """These layers drew random numbers that no key covers."""
        self._say(
            "draws",
            f"{_listed(names)} drew random numbers that are not keyed by sample, so the result depends on micro_batch. "
            "Ways out: nn.Dropout or the dropout functions of torch.nn.functional, which are keyed; or micro_batch as "
            "large as the batch",
        )

    def _say(self, what: str, text: str) -> None:
        if what in self._told:
            return
        self._told.add(what)
        if self._says:
            warnings.warn(text, PromiseWarning, stacklevel=6)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
