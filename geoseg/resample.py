"""The same pixels on a coarser or finer grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

_CUBIC = 4


@dataclass(frozen=True, slots=True)
class Taps:
    """Which source pixels make the target pixels of one axis.

    Every number depends on the two lengths and the target's own index alone, never on the piece that is asked for:
    that is why a resampled scene has one value a pixel, whatever window is read.

    Attributes:
        index: ``(n, T)`` int64, source pixels; repeated at the ends of the axis.
        weight: ``(n, T)`` float64, adds up to 1 in each row; negative in the lobes of the cubic kernel.
        core: ``(n, T)`` bool, the source pixels that decide whether the target pixel is data.
    """

    index: NDArray[np.int64]
    weight: NDArray[np.float64]
    core: NDArray[np.bool_]

    @property
    def span(self) -> tuple[int, int]:
        """First source pixel, and one past the last."""
        return int(self.index.min()), int(self.index.max()) + 1


def taps(source: int, target: int, start: int, stop: int) -> Taps:
    """Taps of the target pixels ``start`` to ``stop`` when ``source`` pixels become ``target`` over the same extent.

    A coarser axis averages: each source pixel counts by the length it shares with the target pixel. A finer axis is
    interpolated by Keys' cubic with a = -1/2, the one GDAL and Pillow use. Lengths are compared in whole numbers, so no
    pixel is taken or left by a rounding error.

    Args:
        source: length of the source axis, pixels.
        target: length of the target axis, pixels.
        start: first target pixel wanted, at least 0.
        stop: one past the last, at most ``target``.
    """
    place = np.arange(start, stop, dtype=np.int64)[:, None]
    return _average(source, target, place) if target <= source else _cubic(source, target, place)


def _average(source: int, target: int, place: NDArray[np.int64]) -> Taps:
    first = place * source // target
    index = first + np.arange(-(-source // target) + 1)
    shared = np.minimum((place + 1) * source, (index + 1) * target) - np.maximum(place * source, index * target)
    shared = np.maximum(shared, 0)
    return Taps(np.minimum(index, source - 1), shared / source, shared > 0)


def _cubic(source: int, target: int, place: NDArray[np.int64]) -> Taps:
    centre = (2 * place + 1) * source - target
    first = centre // (2 * target)
    offset = (centre - first * 2 * target) / (2 * target)
    index = first + np.arange(_CUBIC) - 1
    near = np.concatenate([1 + offset, offset, 1 - offset, 2 - offset], axis=1)
    inner = (1.5 * near - 2.5) * near * near + 1
    outer = ((-0.5 * near + 2.5) * near - 4) * near + 2
    weight = np.where(near <= 1, inner, outer)
    core = index == (2 * place + 1) * source // (2 * target)
    return Taps(np.clip(index, 0, source - 1), weight, core)


def covered(valid: NDArray[np.bool_], rows: Taps, cols: Taps) -> NDArray[np.bool_]:
    """Which target pixels are data: where any source pixel of their core is.

    So every valid source pixel lies in a valid target pixel, and no target pixel is data without one.

    Args:
        valid: ``(H, W)`` of the source rows and columns in the spans of the taps.
        rows: taps of the rows.
        cols: taps of the columns.

    Returns:
        ``(h, w)`` bool.
    """
    if valid.all():
        return np.ones((len(rows.index), len(cols.index)), dtype=bool)
    upright = np.any(valid[rows.index - rows.span[0]] & rows.core[:, :, None], axis=1)
    return cast("NDArray[np.bool_]", np.any(upright[:, cols.index - cols.span[0]] & cols.core, axis=2))


def resample(pixels: NDArray[Any], valid: NDArray[np.bool_], rows: Taps, cols: Taps) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Make target pixels; what is not valid adds nothing to any of them.

    Where a source pixel under the kernel is missing, the others are weighted anew, without the negative lobes.
    Whole-number types are rounded half up and cut at their range.

    Args:
        pixels: ``(B, H, W)`` of the source rows and columns in the spans of the taps.
        valid: ``(H, W)`` of the same pixels.
        rows: taps of the rows.
        cols: taps of the columns.

    Returns:
        ``(B, h, w)`` of the same type, in memory ordered h, w, B, zero where not valid; and ``(h, w)`` bool.
    """
    bands = len(pixels)
    result = np.zeros((len(rows.index), len(cols.index), bands), dtype=pixels.dtype)
    whole = np.issubdtype(pixels.dtype, np.integer)
    limits = np.iinfo(pixels.dtype) if whole else np.finfo(pixels.dtype)
    _weigh(
        np.ascontiguousarray(pixels.transpose(1, 2, 0)).reshape(pixels.shape[1], -1),
        np.ascontiguousarray(valid),
        rows.index - rows.span[0],
        rows.weight,
        cols.index - cols.span[0],
        cols.weight,
        (bool(whole), float(limits.min), float(limits.max)),
        result,
    )
    kept = covered(valid, rows, cols)
    result[~kept] = 0
    return result.transpose(2, 0, 1), kept


def _jit(function: Callable[..., None]) -> Callable[..., None]:
    """Compile at the first call; the machine code is kept on disk where a folder for it can be written."""
    try:
        return cast("Callable[..., None]", njit(cache=True, nogil=True)(function))
    except RuntimeError:
        return cast("Callable[..., None]", njit(nogil=True)(function))


@_jit
def _weigh(
    pixels: NDArray[Any],
    valid: NDArray[np.bool_],
    row_index: NDArray[np.int64],
    row_weight: NDArray[np.float64],
    col_index: NDArray[np.int64],
    col_weight: NDArray[np.float64],
    kind: tuple[bool, float, float],
    result: NDArray[Any],
) -> None:
    """Rows first, into ``column`` sums as wide as the source, then columns. ``pixels`` is ``(H, W * B)``, ``result`` ``(h, w, B)``."""
    width = valid.shape[1]
    height, wide, bands = result.shape
    intact = np.empty(len(valid), dtype=np.bool_)
    for y in range(len(valid)):
        intact[y] = valid[y].all()
    column = np.empty(width * bands)
    partial = np.empty(width * bands)
    mass = np.empty(width)
    whole = np.empty(width, dtype=np.bool_)
    for i in range(height):
        column[:] = 0
        solid = True
        for t in range(row_index.shape[1]):
            weight = row_weight[i, t]
            if weight != 0:
                y = row_index[i, t]
                solid = solid and intact[y]
                if intact[y]:
                    for x in range(width * bands):
                        column[x] += weight * pixels[y, x]
                else:
                    for x in range(width):
                        if valid[y, x]:
                            for b in range(x * bands, x * bands + bands):
                                column[b] += weight * pixels[y, b]
        if not solid:
            partial[:] = 0
            mass[:] = 0
            whole[:] = True
            for t in range(row_index.shape[1]):
                weight = row_weight[i, t]
                if weight != 0:
                    y = row_index[i, t]
                    for x in range(width):
                        whole[x] = whole[x] and valid[y, x]
                        if valid[y, x] and weight > 0:
                            mass[x] += weight
                            for b in range(x * bands, x * bands + bands):
                                partial[b] += weight * pixels[y, b]
        for j in range(wide):
            complete = True
            share = 0.0
            if not solid:
                for t in range(col_index.shape[1]):
                    weight = col_weight[j, t]
                    complete = complete and (weight == 0 or whole[col_index[j, t]])
                    share += max(weight, 0.0) * mass[col_index[j, t]]
            for b in range(bands):
                value = 0.0
                if complete:
                    for t in range(col_index.shape[1]):
                        value += col_weight[j, t] * column[col_index[j, t] * bands + b]
                elif share > 0:
                    for t in range(col_index.shape[1]):
                        value += max(col_weight[j, t], 0.0) * partial[col_index[j, t] * bands + b]
                    value /= share
                if kind[0]:
                    value = np.floor(value + 0.5)
                result[i, j, b] = min(max(value, kind[1]), kind[2])
