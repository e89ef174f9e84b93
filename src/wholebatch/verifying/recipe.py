"""The step that a configuration trains with, verified on a batch of its own data."""

from __future__ import annotations

from wholebatch.config.build import build
from wholebatch.config.schema import Config
from wholebatch.data import BatchLoader
from wholebatch.verifying.ours import usual_sizes, verify
from wholebatch.verifying.result import StepCheck


def verify_recipe(settings: Config) -> StepCheck:
    """Verify model, loss and first batch of a configuration, its own micro-batch among the sizes; print the table.

    Raises:
        ConfigError: the configuration names something that does not exist.
        DataError: the data cannot be used.
    """
    parts = build(settings)
    loader = BatchLoader(parts.train_data, settings.batch_size, seed=settings.seed, transform=parts.train_transform)
    samples = min(settings.batch_size, len(parts.train_data))
    own = settings.resolved_micro_batch()
    sizes = usual_sizes(samples) if own == "auto" else sorted({*usual_sizes(samples), min(int(own), samples)})
    return verify(parts.model, parts.loss, loader, micro_batches=sizes)
