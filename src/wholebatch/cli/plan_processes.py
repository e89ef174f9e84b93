"""``wholebatch plan … --processes N --link RATE``: what a step costs on many processes, as a table or as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wholebatch.core.errors import ConfigError

if TYPE_CHECKING:
    from wholebatch.config.build import Parts
    from wholebatch.config.schema import Config
    from wholebatch.step import Plan
    from wholebatch.step.forecast import Cluster, Forecast, Layout, Speed
    from wholebatch.step.tensor_group import TensorGroup

_MEASURED = 32  # samples of the micro-batch that is timed, at most
_GOOD = 0.9


@dataclass(frozen=True)
class Asked:
    """What the command line says about processes."""

    processes: int | None
    link: str | None
    latency: float
    samples_per_second: float | None
    shard: int

    def check(self) -> None:
        """Refuse half of a question.

        Raises:
            ConfigError: processes without a link, or the other way round.
        """
        if self.processes is None:
            for name, value in {"--link": self.link, "--samples-per-second": self.samples_per_second}.items():
                if value is not None:
                    raise ConfigError(f"{name} {value} is about many processes; say how many: --processes 8")
        elif self.link is None:
            raise ConfigError(f"--processes {self.processes} needs the speed of their links, such as --link 400Gb/s")


class Answer:
    """The forecast of a recipe.

    Args:
        config: the recipe.
        parts: made of it.
        plan: of one process, not sharded.
        asked: see there; checked.
    """

    def __init__(self, config: Config, parts: Parts, plan: Plan, asked: Asked) -> None:
        from wholebatch.step.forecast import Cluster, Layout, rate_of

        assert asked.processes is not None
        assert asked.link is not None
        self.asked, self.batch_size = asked, config.sizes().largest or config.sizes().first
        stages, micro = config.parallel.pipeline, config.resolved_micro_batch()
        shard = asked.shard if asked.shard > 1 else config.parallel.shard
        self.layout = Layout.of(asked.processes, shard, stages, config.parallel.tensor)
        rate = rate_of(asked.link)
        size = min(self.batch_size, _MEASURED if micro == "auto" else int(micro), len(parts.train_data))
        self.speed, self.how = self._speed(config, parts, size)
        crossing = 0 if stages == 1 else self._crossing(parts, stages)
        self.cluster: Cluster = Cluster(
            plan,
            self.speed,
            rate,
            latency=asked.latency * 1e-6,
            crossing=crossing,
            group=None if config.parallel.tensor == 1 else self._group(config, parts),
            micro_batch=None if micro == "auto" else int(micro),
        )

    def _speed(self, config: Config, parts: Parts, size: int) -> tuple[Speed, str]:
        from wholebatch.step.forecast import Speed, measured

        said = self.asked.samples_per_second
        if said is not None:
            return Speed(0.0, 1 / said), f"{said:,.6g} samples/s, as said"
        from wholebatch.core.device import device_for

        device = device_for(config.device, parts.model)
        found = measured(parts.model, _batch(parts, size), parts.loss, parts.optimizer, parts.precision, device)
        return found, f"{size / found.seconds(size):,.4g} samples/s at {size} at once, measured here on {device.type}"

    @staticmethod
    def _crossing(parts: Parts, stages: int) -> int:
        from wholebatch.parallel.balance import crossing_bytes

        return crossing_bytes(parts.model, _batch(parts, 2)[0], stages)

    @staticmethod
    def _group(config: Config, parts: Parts) -> TensorGroup:
        from wholebatch.parallel.tensor_cost import exchanged

        said = config.parallel
        return exchanged(parts.model, said.plan, _batch(parts, 2)[0], said.tensor, parts.precision)

    def _rows(self) -> list[Forecast]:
        """The forecast of a few process counts up to the one asked for, in the same layout."""
        fixed = self.layout.shard * self.layout.pipeline * self.layout.tensor
        counts = {1 if fixed == 1 else fixed, self.layout.processes}
        count = 8
        while count < self.layout.processes:
            counts |= {count} if count % fixed == 0 else set()
            count *= 8
        return [self.cluster.forecast(self._of(count), self.batch_size) for count in sorted(counts)]

    def _of(self, processes: int) -> Layout:
        from wholebatch.step.forecast import Layout

        return Layout.of(processes, self.layout.shard, self.layout.pipeline, self.layout.tensor)

    def as_dict(self) -> dict[str, Any]:
        """Return it as numbers for programs: bytes and seconds."""
        from wholebatch.step.forecast import as_dict

        row = self.cluster.forecast(self.layout, self.batch_size)
        return {
            **as_dict(row),
            "seconds_a_pass": self.speed.a_pass,
            "seconds_a_sample": self.speed.a_sample,
            "seconds_update": self.speed.update,
            "link_bytes_per_second": self.cluster.rate,
            "latency": self.cluster.latency,
            "hides_from_batch_size": self.cluster.hides_from(self.layout),
            "efficient_from_batch_size": self.cluster.batch_for(self.layout, _GOOD),
            "table": [as_dict(one) for one in self._rows()],
        }

    def lines(self) -> list[str]:
        """Return it in words and a table."""
        asked, rows = self.asked, self._rows()
        layout = ", ".join(f"{name} {n:,}" for name, n in vars(self.layout).items() if n > 1 or name == "data")
        hides, good = self.cluster.hides_from(self.layout), self.cluster.batch_for(self.layout, _GOOD)
        head = (
            f"{'processes':>10}{'samples':>9}{'memory':>11}{'sends':>11}{'compute':>10}{'waits':>10}{'efficiency':>12}"
        )
        last = rows[-1]
        return [
            f"{last.processes:,} processes ({layout}), links of {asked.link} each way, {asked.latency:g} µs a message",
            f"one process: {self.how}",
            "",
            f"a batch of {self.batch_size:,}; per process and step:",
            head,
            *[
                f"{row.processes:>10,}{row.samples:>9,}{human(row.memory):>11}"
                f"{human(row.sent_gradients + row.sent_activations):>11}{span(row.compute):>10}"
                f"{span(row.step - row.compute):>10}{row.efficiency:>12.1%}"
                for row in rows
            ],
            "",
            *self._said_of_the_group(last),
            f"gradients travel {span(last.link)}; " + _said_of_hiding(hides, last),
            f"efficiency of {_GOOD:.0%} " + ("is out of reach" if good is None else f"from a batch of {good:,}"),
            "how this is worked out, and what it leaves out: the documentation's page on planning for many processes",
        ]

    def _said_of_the_group(self, last: Forecast) -> list[str]:
        if last.tensor == 1:
            return []
        passes = -(-last.samples // last.micro_batch)
        seconds = self.cluster.activation_seconds(self.layout, last.samples, passes)
        split = self.cluster.group.split
        return [f"{split:.1%} of the parameters are split; what that sends within the group takes {span(seconds)}"]


def _said_of_hiding(hides: int | None, last: Forecast) -> str:
    if hides is None:
        return "no micro-batch that is allowed or fits is long enough to hide that"
    if not last.link:
        return "there is nothing to hide"
    return f"hidden behind the backward pass from a batch of {hides:,}"


def _batch(parts: Parts, size: int) -> Any:
    from wholebatch.data import BatchLoader

    return next(iter(BatchLoader(parts.train_data, size, transform=parts.train_transform)))


def span(seconds: float) -> str:
    """A time as people read it.

    >>> span(0.000033), span(0.0125), span(3.2)
    ('33 µs', '12.5 ms', '3.20 s')
    """
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def human(size: int) -> str:
    """A number of bytes as people read it.

    >>> human(1536), human(5 * 2**30)
    ('1.5 KiB', '5.0 GiB')
    """
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
