"""How lines are told apart: colours for any colour vision, line styles, and letters where there are no colours.

The colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), without the yellow, which is lost on white, and
on a terminal without the black, which is lost there.
"""

from __future__ import annotations

from typing import Any

ON_PAPER = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
ON_TERMINAL = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#F0E442", "#0072B2")
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("", "o", "s", "^", "D", "v", "P", "X")
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def style(index: int) -> dict[str, Any]:
    """Colour, line style and marker of a line, by its number; the first 224 all differ.

    >>> style(0)["color"], style(1)["linestyle"], len({tuple(style(i).values()) for i in range(224)})
    ('#0072B2', '--', 224)
    """
    once = len(ON_PAPER) * len(_STYLES)
    return {
        "color": ON_PAPER[index % len(ON_PAPER)],
        "linestyle": _STYLES[index % len(_STYLES)],
        "marker": _MARKERS[index // once % len(_MARKERS)],
    }


def letter(index: int) -> str:
    """The letter of a line on a terminal, by its number."""
    return _LETTERS[index % len(_LETTERS)]


def terminal_color(index: int) -> str:
    """The colour of a line on a terminal, by its number."""
    return ON_TERMINAL[index % len(ON_TERMINAL)]
