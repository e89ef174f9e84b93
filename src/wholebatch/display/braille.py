"""A canvas of braille characters: two dots wide and four dots high in every cell of a terminal.

The eight dots of a character are the bits of its code point above U+2800 (The Unicode Standard, chapter 21.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # by column and row of the dot
_BLANK = 0x2800


class Canvas:
    """``width`` by ``height`` cells; a dot's place is counted from the lower left corner.

    >>> canvas = Canvas(3, 1)
    >>> canvas.line(0, 0, 5, 3)
    >>> canvas.text()
    ['⡠⠔⠊']
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._bits = [[0] * width for _ in range(height)]
        self._owner = [[-1] * width for _ in range(height)]

    def dot(self, x: int, y: int, owner: int = 0) -> None:
        """Set a dot; one outside the canvas is left out. The cell then belongs to ``owner``."""
        if 0 <= x < 2 * self.width and 0 <= y < 4 * self.height:
            row, column = self.height - 1 - y // 4, x // 2
            self._bits[row][column] |= _BITS[x % 2][3 - y % 4]
            self._owner[row][column] = owner

    def line(self, x0: int, y0: int, x1: int, y1: int, owner: int = 0) -> None:
        """Set the dots of a straight line, both ends included."""
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for step in range(steps + 1):
            part = step / steps
            self.dot(math.floor(x0 + (x1 - x0) * part + 0.5), math.floor(y0 + (y1 - y0) * part + 0.5), owner)

    def path(self, points: Sequence[tuple[int, int] | None], owner: int = 0) -> None:
        """Join points; None is a gap, and a point between gaps is a dot."""
        before: tuple[int, int] | None = None
        for point in points:
            if point is not None:
                self.line(*(before or point), *point, owner)
            before = point

    def rows(self, braille: bool = True) -> list[list[tuple[str, int]]]:
        """From the top, each cell's character and owner (-1: nobody's); a star for any dot without ``braille``."""

        def character(bits: int) -> str:
            return " " if not bits else chr(_BLANK + bits) if braille else "*"

        return [
            [(character(bits), owner) for bits, owner in zip(line, owners, strict=True)]
            for line, owners in zip(self._bits, self._owner, strict=True)
        ]

    def text(self, braille: bool = True) -> list[str]:
        """The same as plain lines."""
        return ["".join(character for character, _ in row) for row in self.rows(braille)]
