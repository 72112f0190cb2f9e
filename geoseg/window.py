"""Pixel rectangles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """A half-open rectangle of pixels, row before column; never empty, may lie outside the scene.

    Attributes:
        row: first row.
        col: first column.
        height: number of rows, at least 1.
        width: number of columns, at least 1.
    """

    row: int
    col: int
    height: int
    width: int

    def __post_init__(self) -> None:
        """Refuse an empty rectangle and anything that is not an integer."""
        for name in ("row", "col", "height", "width"):
            value = getattr(self, name)
            if not isinstance(value, int):
                raise TypeError(f"Window.{name} is {value!r}, expected an int")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"Window of {self.height}x{self.width} pixels is empty, expected at least 1x1")

    @classmethod
    def of(cls, shape: tuple[int, int]) -> Window:
        """The rectangle of a whole array of shape ``(height, width)``."""
        return cls(0, 0, shape[0], shape[1])

    @classmethod
    def between(cls, row: int, col: int, end_row: int, end_col: int) -> Window:
        """The rectangle from the corner ``(row, col)`` to the open end ``(end_row, end_col)``."""
        return cls(row, col, end_row - row, end_col - col)

    @property
    def end_row(self) -> int:
        """One past the last row."""
        return self.row + self.height

    @property
    def end_col(self) -> int:
        """One past the last column."""
        return self.col + self.width

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)``."""
        return self.height, self.width

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.height * self.width

    def __and__(self, other: Window) -> Window | None:
        """The pixels in both rectangles; None where they share none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        end_row, end_col = min(self.end_row, other.end_row), min(self.end_col, other.end_col)
        return Window.between(row, col, end_row, end_col) if row < end_row and col < end_col else None

    def contains(self, other: Window) -> bool:
        """Whether every pixel of ``other`` is in this rectangle."""
        return (self & other) == other

    def within(self, outer: Window) -> tuple[slice, slice]:
        """Row and column slices of this rectangle in an array that covers ``outer``: ``a[w.within(outer)]``.

        Raises:
            ValueError: if this rectangle is not inside ``outer``.
        """
        if not outer.contains(self):
            raise ValueError(f"{self} is not inside {outer}")
        top, left = self.row - outer.row, self.col - outer.col
        return slice(top, top + self.height), slice(left, left + self.width)

    def shift(self, rows: int, cols: int) -> Window:
        """The same rectangle, moved."""
        return Window(self.row + rows, self.col + cols, self.height, self.width)

    def split(self, height: int, width: int) -> Iterator[Window]:
        """Cut into pieces of at most ``height`` x ``width``, row by row; they cover each pixel exactly once."""
        for row in range(self.row, self.end_row, height):
            for col in range(self.col, self.end_col, width):
                yield Window.between(row, col, min(row + height, self.end_row), min(col + width, self.end_col))
