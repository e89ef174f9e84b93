import pytest

import wholebatch as wb
from wholebatch.config.lone_schedule import lone_schedule


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{shape: cosine, max_update: 20, lr: 0.3}", wb.CosineScheduler(20, 0.3)),
        (
            "{shape: cosine, max_update: 20, base_lr: 0.3, final_lr: 0.01, warmup_steps: 5, warmup_begin_lr: 0.1}",
            wb.CosineScheduler(20, 0.3, 0.01, 5, 0.1),
        ),
        ("shape: polynomial\nmax_update: 9\npower: 3", wb.PolynomialScheduler(9, 0.1, power=3)),
        ("{shape: trapezoid, max_update: 9, decay_steps: 3}", wb.TrapezoidScheduler(9, 0.1, 0, 3)),
        ("{shape: multi_factor, step: [3, 5], factor: 0.5}", wb.MultiFactorScheduler([3, 5], 0.5, 0.1)),
        ("{shape: square_root, warmup_steps: 4}", wb.Warmup(wb.SquareRootScheduler(0.1), 4)),
        ("square_root", wb.SquareRootScheduler(0.1)),
        ("constant", wb.ConstantScheduler(0.1)),
        ("{lr: 0.2}", wb.ConstantScheduler(0.2)),
    ],
)
def test_what_a_configuration_would_build(text, expected):
    made, _, unit = lone_schedule(text)
    assert made == expected
    assert unit == "step"


def test_what_it_counts():
    assert lone_schedule("{shape: constant, schedule_unit: epoch}")[1:] == ("constant", "epoch")
    with pytest.raises(wb.ConfigError, match="schedule_unit=epok: expected step or epoch"):
        lone_schedule("{shape: constant, unit: epok}")
