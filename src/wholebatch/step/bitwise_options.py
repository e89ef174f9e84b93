"""What bitwise mode cannot do is refused when the step is made, with the reason."""

from __future__ import annotations

from typing import Any

from torch import nn

from wholebatch.core.errors import ConfigError, InputError
from wholebatch.step.engine import Engine, Flat
from wholebatch.step.grouped_norm import GroupedNorm
from wholebatch.step.losses import LossCall
from wholebatch.step.unkeyed import PowerIterations


def check_bitwise(micro_batch: Any, tokens: Any, threads: Any, engine: Engine | None) -> None:
    """Refuse options that the bits would depend on.

    Raises:
        ConfigError: the message says why, and what to do.
    """
    if tokens is not None or micro_batch == "auto":
        given = f"micro_batch={micro_batch!r}" if tokens is None else f"micro_batch_tokens={tokens}"
        raise ConfigError(
            f"bitwise=True with {given}: the micro-batch is part of what the bits are a function of, and this one "
            "would follow the machine or the data; name a number of samples, such as micro_batch=32"
        )
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ConfigError(f"threads={threads!r}; expected a number of threads, 1 or more, or None")
    if engine is not None and type(engine) is not Flat:
        raise ConfigError(
            f"bitwise=True with the engine {type(engine).__name__}: DistributedDataParallel adds gradients in an order "
            "that depends on the processes; use parallel='flat' or 'auto'"
        )


def check_model_bitwise(model: nn.Module, loss: LossCall) -> None:
    """Refuse layers and losses that bitwise mode does not know how to make independent of the processes.

    Raises:
        InputError: the message names the layer, why, and what to do.
    """
    if loss.coupled:
        raise InputError("bitwise=True with WholeBatchLoss is not available in this version; leave bitwise out")
    modules = list(model.named_modules())
    modules += [] if loss.module is None else list(loss.module.named_modules(prefix="loss"))
    for name, module in modules:
        said = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, GroupedNorm):
            raise InputError(
                f"{said}: bitwise=True normalises each micro-batch by itself; leave wholebatch.convert_batchnorm out, "
                "and take its group as micro_batch"
            )
        if isinstance(module, nn.SyncBatchNorm):
            raise InputError(f"{said} adds over processes within the forward; bitwise=True takes nn.BatchNorm")
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise InputError(
                f"{said} is compiled: which kernels a compiler makes depends on more than bitwise=True can hold still; "
                "pass the module as it was before torch.compile"
            )
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise InputError(f"{said} gives sparse gradients, which bitwise=True does not add; use sparse=False")
    if PowerIterations(model).vectors:
        raise InputError("the model has a spectral norm, which bitwise=True does not know in this version")
