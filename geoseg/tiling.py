"""Which pixels are read, seen and owned."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from geoseg.errors import TilingError
from geoseg.window import Window


@dataclass(frozen=True, slots=True)
class Tile:
    """One question to the network.

    Attributes:
        window: the tile's place on the lattice, may reach outside the grid; its pixels are weighted by the taper.
        seen: what the network sees: ``window`` pushed inside the grid, so that a border of the grid is a border of
            the network's input, as it is when the whole grid is one input. Contains every grid pixel of ``window``.
    """

    window: Window
    seen: Window


@dataclass(frozen=True, slots=True)
class Tiling:
    """The lattice of a grid: where tiles start, and what each one sees.

    The lattice belongs to the grid and begins one overlap before pixel 0, so that every pixel, the first and the
    last included, lies where the weights of its tiles add up to one. It does not depend on blocks.

    Attributes:
        height: of the grid, pixels.
        width: of the grid, pixels.
        tile: height and width of a tile, a multiple of ``align``.
        overlap: pixels shared by neighbouring tiles, a multiple of ``align``, at most half a tile.
        align: downsampling of the network; tiles see windows that start on multiples of it, as in one whole pass.
    """

    height: int
    width: int
    tile: int
    overlap: int
    align: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot tile a grid."""
        if self.height < 1 or self.width < 1:
            raise TilingError(f"grid of {self.height}x{self.width} pixels is empty")
        if self.tile < self.align or self.tile % self.align:
            raise TilingError(
                f"tile {self.tile} is not a multiple of the network's stride; try {max(1, self.tile // self.align) * self.align}"
            )
        if self.overlap % self.align or not 0 <= self.overlap <= self.tile // 2:
            best = max(0, min(self.overlap, self.tile // 2)) // self.align * self.align
            raise TilingError(
                f"overlap {self.overlap} must be a multiple of {self.align} from 0 to half the tile ({self.tile // 2}); try {best}"
            )

    @property
    def stride(self) -> int:
        """Distance between neighbouring tiles, pixels."""
        return self.tile - self.overlap

    def starts(self, low: int, high: int) -> range:
        """Offsets of the lattice tiles that touch the half-open span ``[low, high)``, in pixels."""
        first = (low + self.overlap - self.tile) // self.stride + 1
        last = (high - 1 + self.overlap) // self.stride
        return range(first * self.stride - self.overlap, last * self.stride - self.overlap + 1, self.stride)

    def tiles(self, window: Window, rim: int = 0) -> Iterator[Tile]:
        """Tiles that give weight to a pixel of ``window``, row by row.

        Args:
            window: pixels of the grid that need an answer.
            rim: width of the tile's border whose weight is zero, pixels.
        """
        for row in self.starts(window.row, window.end_row):
            if row + self.tile - rim <= window.row or row + rim >= window.end_row:
                continue
            seen_row, seen_height = self._seen(row, self.height)
            for col in self.starts(window.col, window.end_col):
                if col + self.tile - rim <= window.col or col + rim >= window.end_col:
                    continue
                seen_col, seen_width = self._seen(col, self.width)
                yield Tile(
                    window=Window(row, col, self.tile, self.tile),
                    seen=Window(seen_row, seen_col, seen_height, seen_width),
                )

    def _seen(self, start: int, length: int) -> tuple[int, int]:
        """Offset and length of what a tile at ``start`` sees along an axis of ``length`` pixels."""
        whole = -(-length // self.align) * self.align
        size = min(self.tile, whole)
        return min(max(start, 0), whole - size), size


def cores(window: Window, largest: int, align: int = 1) -> Iterator[Window]:
    """Cut a window into nearly equal cores, row by row; they cover each pixel exactly once.

    Args:
        window: what is to be covered.
        largest: upper bound of a core's height and width, pixels.
        align: inner borders lie on multiples of this (the block size of the raster that is written), if ``largest`` allows.
    """
    rows, cols = (_cuts(n, largest, align) for n in window.shape)
    for top, bottom in itertools.pairwise(rows):
        for left, right in itertools.pairwise(cols):
            yield Window.between(window.row + top, window.col + left, window.row + bottom, window.col + right)


def _cuts(length: int, largest: int, align: int) -> list[int]:
    if largest < 1:
        raise TilingError(f"block size {largest} must be at least 1 pixel")
    step = -(-length // -(-length // largest))
    step = min(-(-step // align) * align, largest // align * align or largest)
    return [*range(0, length, step), length]
