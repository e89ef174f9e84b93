"""d2l's plot, Animator and show_images: what stands in matplotlib's objects afterwards."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from PIL import Image

import wholebatch as wb
from wholebatch.compat import d2l


def drawn(axes: object) -> list[tuple[list[float], list[float]]]:
    return [
        (np.asarray(line.get_xdata(), float).tolist(), np.asarray(line.get_ydata(), float).tolist())
        for line in axes.lines
    ]


def test_the_current_axes_hold_what_plot_drew() -> None:
    x = torch.arange(0, 3, 0.5, requires_grad=True)
    f = x**2
    d2l.plot(x, [f, 2 * x - 1], "x", "f(x)", legend=["f(x)", "tangent"], xlim=[0, 3], yscale="log", figsize=(4, 3))
    axes = d2l.plt.gca()
    values = x.tolist()
    assert drawn(axes) == [(values, f.tolist()), (values, (2 * x - 1).tolist())]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xlim(), axes.get_yscale()) == ("x", "f(x)", (0, 3), "log")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["f(x)", "tangent"]
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--"]
    assert axes.lines[1].get_color() == "m"
    assert list(d2l.plt.rcParams["figure.figsize"]) == [4, 3]
    d2l.plot([1, 2, 3])  # clears
    assert drawn(axes) == [([0, 1, 2], [1, 2, 3])]


@pytest.mark.parametrize(
    ("X", "Y", "expected"),
    [
        ([3, 1], None, [([0, 1], [3, 1])]),
        ([[3, 1], [2]], None, [([0, 1], [3, 1]), ([0], [2])]),
        (range(2), [5, 6], [([0, 1], [5, 6])]),
        (torch.arange(2), [torch.tensor(5.0), torch.tensor(6.0)], [([0, 1], [5, 6])]),
        ([[1, 2], [3, 4]], [[5, 6], [7, 8]], [([1, 2], [5, 6]), ([3, 4], [7, 8])]),
        (np.arange(2), np.array([[5, 6], [7, 8]]), [([0, 1], [5, 6]), ([0, 1], [7, 8])]),
        (torch.tensor([[1.0, 2.0]]), torch.tensor([5, 6], dtype=torch.bfloat16), [([1, 2], [5, 6])]),
        ([[]], [[5, 6], [7]], [([0, 1], [5, 6]), ([0], [7])]),
    ],
)
def test_one_series_or_several(X: object, Y: object, expected: object) -> None:
    d2l.plot(X, Y)
    assert drawn(d2l.plt.gca()) == expected


def test_series_that_do_not_pair_are_refused() -> None:
    with pytest.raises(wb.InputError, match="2 series of x and 3 of y"):
        d2l.plot([[1], [2]], [[1], [2], [3]])


def test_more_series_than_formats_are_all_drawn_and_all_look_different() -> None:
    axes = d2l.plt.subplots()[1]
    d2l.plot([0, 1], [[0, k] for k in range(14)], axes=axes)
    assert drawn(axes) == [([0, 1], [0, k]) for k in range(14)]
    animator = d2l.Animator(legend=[f"s{k}" for k in range(14)])
    animator.add(1, list(range(14)))
    for lines in (axes.lines, animator.axes[0].lines):
        assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 14
    assert len(animator.axes[0].get_legend().get_texts()) == 14


def test_limits_without_room_are_left_alone() -> None:
    axes = d2l.plt.gca()
    d2l.set_axes(axes, "x", "y", [1, 1], None, "linear", "linear", None)
    assert axes.get_xlim()[0] < axes.get_xlim()[1]
    assert axes.get_legend() is None
    assert axes.get_xgridlines()[0].get_visible()


def test_a_single_number_is_the_lower_limit() -> None:
    d2l.plot([1, 2, 3], xlim=1, ylim=(0, 4))
    assert (d2l.plt.gca().get_xlim()[0], d2l.plt.gca().get_ylim()) == (1, (0, 4))


def test_what_is_drawn_after_a_plot_is_seen() -> None:
    d2l.plot([1, 2, 3])
    d2l.plt.scatter([9], [7])
    axes = d2l.plt.gca()
    assert axes.get_xlim()[1] > 9
    assert axes.get_ylim()[1] > 7


def test_labels_have_room_on_the_books_small_figures() -> None:
    animator = d2l.Animator(xlabel="epoch", ylabel="loss")
    animator.add(1, 0.5)
    animator.fig.draw_without_rendering()
    d2l.plot([0.25, 0.5], xlabel="x", ylabel="f(x)", axes=d2l.plt.figure(figsize=(3.5, 2.5)).gca())
    d2l.plt.gcf().draw_without_rendering()
    for axes in (animator.axes[0], d2l.plt.gca()):
        for label in (axes.xaxis.label, axes.yaxis.label):
            box = label.get_window_extent()
            assert box.x0 >= 0
            assert box.y0 >= 0


def test_an_animator_keeps_every_point() -> None:
    animator = d2l.Animator(xlabel="epoch", xlim=[0, 3], ylim=[0, 2], yscale="linear", legend=["a", "b", "c"])
    assert (animator.X, animator.Y, animator.fmts) == (None, None, ("-", "m--", "g-.", "r:"))
    assert len(animator.axes) == 1
    animator.add(0.5, (1.5, torch.tensor(0.25, requires_grad=True), None))
    animator.add(1, (np.float32(0.5), 0.5, None))
    animator.add(1, (None, None, 0.75))
    assert animator.X == [[0.5, 1], [0.5, 1], [1]]
    assert animator.Y == [[1.5, 0.5], [0.25, 0.5], [0.75]]
    assert all(type(y) is float for series in animator.Y for y in series)
    assert drawn(animator.axes[0]) == list(zip(animator.X, animator.Y, strict=True))
    assert (animator.axes[0].get_xlim(), animator.axes[0].get_xlabel()) == ((0, 3), "epoch")
    assert animator.axes[0].get_ylim() == (0, 2)
    assert animator.fig.axes == animator.axes
    animator.add([2, 3], [0.1, 0.2])
    animator.add(4, 0.3)
    assert animator.X == [[0.5, 1, 2, 4], [0.5, 1, 3], [1]]
    with pytest.raises(wb.InputError, match="2 values of x and 3 of y"):
        animator.add([1, 2], [1, 2, 3])


def test_limits_that_are_not_given_follow_the_points() -> None:
    animator = d2l.Animator()
    for x in range(1, 6):
        animator.add(x, (10 * x,))
        low, high = animator.axes[0].get_ylim()
        assert low <= 10
        assert 10 * x <= high < 10 * x + 10


def test_a_legend_with_a_name_twice_or_too_few_names() -> None:
    for legend, shown in ((["a", "a", "b"], ["a", "a", "b"]), (["a"], ["a"]), (list("abcd"), ["a", "b", "c"])):
        animator = d2l.Animator(legend=legend)
        animator.add(1, (1, 2, 3))
        assert [text.get_text() for text in animator.axes[0].get_legend().get_texts()] == shown


def test_axes_that_were_cleared_get_their_lines_and_labels_again() -> None:
    animator = d2l.Animator(xlabel="epoch", xlim=[0, 5], legend=["a", "b"])
    animator.add(1, (2, 3))
    animator.axes[0].cla()
    animator.add(2, (4, 5))
    axes = animator.axes[0]
    assert drawn(axes) == [([1, 2], [2, 4]), ([1, 2], [3, 5])]
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert (axes.get_xlabel(), axes.get_xlim()) == ("epoch", (0, 5))


def test_a_derived_animator_that_draws_as_the_books_does() -> None:
    class Own(d2l.Animator):
        def add(self, x: float, y: list[float]) -> None:
            self.X, self.Y = self.X or [[] for _ in y], self.Y or [[] for _ in y]
            for place, value in enumerate(y):
                self.X[place].append(x)
                self.Y[place].append(value)
            self.axes[0].cla()
            for a, b, fmt in zip(self.X, self.Y, self.fmts, strict=False):
                self.axes[0].plot(a, b, fmt)
            self.config_axes()

    animator = Own(xlabel="x", legend=["a", "b"])
    for x in range(3):
        animator.add(x, [x, 2 * x])
    animator.fig.canvas.draw()
    assert drawn(animator.axes[0]) == [([0, 1, 2], [0, 1, 2]), ([0, 1, 2], [0, 2, 4])]
    assert [text.get_text() for text in animator.axes[0].get_legend().get_texts()] == ["a", "b"]
    assert animator.axes[0].get_xlabel() == "x"


def test_several_axes() -> None:
    animator = d2l.Animator(nrows=2, ncols=2)
    assert len(animator.axes) == 4
    animator.add(1, 2)
    animator.axes[3].plot([1, 2])
    assert [len(axes.lines) for axes in animator.axes] == [1, 0, 0, 1]


def test_many_points_are_all_kept_drawn_when_looked_at_and_linear_in_time() -> None:
    animator = d2l.Animator()

    def seconds(count: int) -> float:
        begun = time.thread_time()
        for x in range(count):
            animator.add(x, (x,))
        return time.thread_time() - begun

    seconds(2_000)
    short, long = seconds(10_000), seconds(80_000)
    assert long < 8 * short * 3  # drawing every point again each time would make it 50 times as much and more
    assert len(animator.Y[0]) == 92_000
    d2l.plt.figure(animator.fig.number).canvas.draw()  # by pyplot, as savefig does, without asking the animator
    line = d2l.plt.gcf().axes[0].lines[0]
    assert len(line.get_xdata()) == 92_000


def test_savefig_finds_the_last_point_without_asking_the_animator() -> None:
    animator = d2l.Animator()
    axes = animator.axes[0]
    for x in range(500):
        animator.add(x, (x % 7,))
    assert len(axes.lines[0].get_xdata()) < 500  # it is not drawn at every addition …
    d2l.plt.gcf().canvas.draw()
    assert len(axes.lines[0].get_xdata()) == 500  # … but nobody sees a picture without it


def test_images_in_rows() -> None:
    images = [torch.rand(5, 4), np.zeros((5, 4)), Image.new("RGB", (4, 5)), torch.rand(5, 4, 3)]
    axes = d2l.show_images(images, 2, 3, titles=["a", "b"], scale=2)
    assert axes.shape == (6,)
    assert [len(cell.images) for cell in axes] == [1, 1, 1, 1, 0, 0]
    assert [cell.get_title() for cell in axes[:3]] == ["a", "b", ""]
    assert not axes[0].get_xaxis().get_visible()
    assert list(d2l.plt.gcf().get_size_inches()) == [6, 4]
    assert np.allclose(axes[0].images[0].get_array(), images[0])
    assert d2l.show_images(torch.rand(1, 3, 3, requires_grad=True), 1, 1).shape == (1,)
