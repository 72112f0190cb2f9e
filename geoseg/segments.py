"""How well the regions between borders are found, as the ISBI challenge of 2012 counts it.

U-Net's first table has these three errors. A pixel is inside of a region or on a border; regions are what hangs together by sides.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]

MOST_PIXELS: Final = 1 << 26
"""Regions hang together from one end of an image to the other, so that it is held as a whole."""

_AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
_EIGHT = np.ones((3, 3), bool)


@dataclass(frozen=True, slots=True)
class Errors:
    """Each is 0 for the same map, and 1 at most; NaN where nothing is known.

    Attributes:
        pixel_error: share of the pixels that are not what they are in truth.
        rand_error: 1 - F of the pairs of pixels in one region (Arganda-Carreras et al. 2015, equation 3 with alpha 0.5): of the pixels that
            are inside in truth; one that is found on a border is in no region with any other. Borders are not thinned before.
        warping_error: share of the pixels that still differ when the truth has been warped to the map, pixel by pixel, as far as no region
            is cut, joined, made, lost, opened or closed by it (Jain et al. 2010, section 2): the mistakes of topology. As there, only
            pixels that differ are turned: a border moved by more than its width counts.
    """

    pixel_error: float
    rand_error: float
    warping_error: float

    def named(self) -> dict[str, float]:
        """By their names."""
        return asdict(self)


def errors(found: Mask, true: Mask, known: Mask) -> Errors:
    """Compare two maps of what is inside of a region.

    Args:
        found: (H, W) bool.
        true: (H, W) bool.
        known: (H, W) bool, where truth is known; other pixels do not count, and are taken to be as they are found.
    """
    if not known.any():
        return Errors(np.nan, np.nan, np.nan)
    count, wrong = int(known.sum()), (found != true) & known
    target = np.where(known, true, found)
    return Errors(int(wrong.sum()) / count, rand_error(found, true & known), int((warp(target, found) != found).sum()) / count)


def rand_error(found: Mask, true: Mask) -> float:
    """`Errors.rand_error` of two maps of what is inside; NaN if truth has no two pixels in one region."""
    (ours, _), (theirs, most) = ndimage.label(found), ndimage.label(true)
    inside = true.ravel()
    ours, theirs = ours.ravel()[inside].astype(np.int64), theirs.ravel()[inside].astype(np.int64)
    both = _pairs(ours[ours > 0] * (most + 1) + theirs[ours > 0])
    either = _pairs(ours[ours > 0]) + _pairs(theirs)
    return 1 - 2 * both / either if either else np.nan


def _pairs(labels: NDArray[np.int64]) -> int:
    """Number of ordered pairs of different pixels with the same label."""
    sizes = np.unique(labels, return_counts=True)[1]
    return int((sizes * (sizes - 1)).sum())


def warp(true: Mask, found: Mask) -> Mask:
    """Turn pixels of a map towards another as long as the topology of the map stays.

    A pixel may turn if it is simple: if what is inside around it hangs together by sides, and what is border by sides or corners, with it
    and without it (beyond the image is border). Pixels turn together that do not touch, four kinds of rows and columns by turns, so that
    the result depends on nothing else; as with any order, one that cannot turn at the end might have with another order.

    Args:
        true: (H, W) bool, what is inside of a region.
        found: (H, W) bool.

    Returns:
        (H, W) bool, with as many regions, and as many holes, as ``true``.
    """
    simple, height, width = _simple(), *true.shape
    held = np.pad(true, 1)
    turned = True
    while turned:
        turned = False
        for row, col in ((0, 0), (0, 1), (1, 0), (1, 1)):
            inner = held[1:-1, 1:-1][row::2, col::2]
            code = np.zeros(inner.shape, np.uint8)
            for bit, (down, right) in enumerate(_AROUND):
                code |= held[1 + down : height + 1 + down, 1 + right : width + 1 + right][row::2, col::2].astype(np.uint8) << bit
            now = (inner != found[row::2, col::2]) & simple[code]
            inner ^= now
            turned |= bool(now.any())
    return held[1:-1, 1:-1]


@cache
def _simple() -> Mask:
    """(256,) bool, for each way that the eight pixels around one can be inside: whether turning it changes no topology."""
    table = np.zeros(256, bool)
    for code in range(256):
        around = np.zeros((3, 3), bool)
        for bit, (down, right) in enumerate(_AROUND):
            around[1 + down, 1 + right] = code >> bit & 1
        outside = ~around
        outside[1, 1] = False
        pieces = ndimage.label(around)[0]
        beside = {int(pieces[place]) for place in ((0, 1), (1, 0), (1, 2), (2, 1))} - {0}
        table[code] = len(beside) == 1 and ndimage.label(outside, _EIGHT)[1] == 1
    return table
