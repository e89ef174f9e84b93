import math

from wholebatch.core.record import History
from wholebatch.display.series import Places, series


def test_steps_lie_between_the_ends_of_epochs(fine_history):
    history = fine_history(epochs=2, steps=4)
    history.records.append({"kind": "step", "split": "train", "step": 10, "epoch": 3, "loss": 1.0})
    points = series(history, Places(history), "train", "step", "loss")
    assert points.x == [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5]
    assert series(history, Places(history), "train", "epoch", "loss").x == [1, 2]


def test_epochs_of_unequal_length():
    places = [("step", 2, 1), ("step", 4, 1), ("epoch", 4, 1), ("step", 5, 2), ("epoch", 6, 2), ("step", 7, 3)]
    history = History([{"kind": k, "split": "train", "step": s, "epoch": e, "loss": 1.0} for k, s, e in places])
    assert series(history, Places(history), "train", "step", "loss").x == [0.5, 1, 1.5, 2.5]


def test_without_a_finished_epoch_places_are_steps():
    history = History([{"kind": "step", "split": "train", "step": 7, "epoch": 1, "loss": 1.0}])
    assert Places(history).unit == "step"
    assert series(history, Places(history), "train", "step", "loss").x == [7]


def test_long_series_are_thinned_and_keep_their_end(fine_history):
    history = fine_history(epochs=10, steps=1000, test=False)
    points = series(history, Places(history), "train", "step", "loss")
    assert 1000 < len(points.x) <= 1500
    assert points.x[-1] == 10
    assert points.y[-1] == 2.0 / 10_000


def test_strange_values_are_gaps():
    values = [1.0, math.inf, None, "x", math.nan]
    history = History(
        [{"kind": "epoch", "split": "test", "step": n, "epoch": n, "loss": v} for n, v in enumerate(values)]
    )
    points = series(history, Places(history), "test", "epoch", "loss")
    assert points.y[0] == 1.0
    assert all(math.isnan(y) for y in points.y[1:])
    assert points
    assert not series(history, Places(history), "test", "epoch", "accuracy")
