"""Arcs in their one canonical form, whatever bands they were traced in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from geoseg.polygons.arcs import EAST, NORTH, SOUTH, WEST, Arcs
from geoseg.polygons.kernel import Kernel, Number, inlined


def join(arcs: Arcs) -> Arcs:
    """Join arcs where only two of them meet, and put them in order.

    Two arcs meet where a band ended, and where slivers were merged. Afterwards a node joins three or four arcs. A closed arc begins
    at its topmost, leftmost corner and goes east; an open one runs from its upper end, the left one of two in a row, or, if both are
    one node, leaves it in the first of the directions north, east, south, west. Arcs are sorted by the row, column and direction of
    their beginning, nodes by row and column. So whatever is done next does not depend on how the raster was cut.

    Args:
        arcs: with points on the pixel grid, int32. Arcs between two parts of one face are dropped.
    """
    kept = np.flatnonzero(arcs.left != arcs.right)
    start, end = arcs.start[kept], arcs.end[kept]
    slots = np.full(4 * arcs.nodes, -1, np.int64)
    for codes, halves in ((start, 2 * np.arange(len(kept))), (end, 2 * np.arange(len(kept)) + 1)):
        slots[codes[codes >= 0]] = halves[codes >= 0]
    degree = (slots.reshape(-1, 4) >= 0).sum(axis=1)
    pieces = (arcs.offsets[kept], arcs.offsets[kept + 1], arcs.points)
    points, lengths, sides, codes = _chains(*pieces, np.stack([arcs.left[kept], arcs.right[kept]], axis=1), start, end, slots, degree)
    begins = np.concatenate([[0], np.cumsum(lengths)])
    first, second = points[begins[:-1]], points[begins[:-1] + 1]
    step = second.astype(np.int64) - first
    direction = np.select([step[:, 1] < 0, step[:, 0] > 0, step[:, 1] > 0], [NORTH, EAST, SOUTH], WEST)
    order = np.lexsort((direction, first[:, 0], first[:, 1]))
    offsets = np.concatenate([[0], np.cumsum(lengths[order])])
    points = _gathered(points, begins, order, offsets)
    codes, nodes = _renumbered(codes[order], points, offsets)
    return replace(
        arcs,
        points=points,
        offsets=offsets,
        left=sides[order, 0],
        right=sides[order, 1],
        start=codes[:, 0],
        end=codes[:, 1],
        nodes=nodes,
    )


def _renumbered(codes: NDArray[np.int64], points: NDArray[np.int32], offsets: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Ends (A, 2) with the nodes numbered from top to bottom and left to right, and how many there are."""
    where = np.stack([points[offsets[:-1]], points[offsets[1:] - 1]], axis=1)
    open_ = codes >= 0
    place = where[..., 1].astype(np.int64) << 32 | where[..., 0]
    nodes, number = np.unique(place[open_], return_inverse=True)
    renumbered = codes.copy()
    renumbered[open_] = 4 * number + codes[open_] % 4
    return renumbered, len(nodes)


@inlined
def _straight(points: NDArray[np.int32], one: Number, two: Number, col: Number, row: Number) -> bool:
    """Whether two points and a third lie on one line of the pixel grid."""
    upright: bool = points[one, 0] == points[two, 0] == col
    level: bool = points[one, 1] == points[two, 1] == row
    return upright or level


@inlined
def _turned(points: NDArray[np.int32], begin: Number, end: Number) -> None:
    """Reverse a run of points."""
    for step in range((end - begin) // 2):
        for axis in range(2):
            points[begin + step, axis], points[end - 1 - step, axis] = points[end - 1 - step, axis], points[begin + step, axis]


@inlined
def _canonical_ring(points: NDArray[np.int32], begin: Number, end: int) -> tuple[int, bool]:
    """Let a closed run begin at its topmost, leftmost corner and go east; returns its new end and whether it was reversed."""
    if _straight(points, end - 2, begin, points[begin + 1, 0], points[begin + 1, 1]):
        for at in range(begin, end - 1):
            points[at] = points[at + 1]
        end -= 1
        points[end - 1] = points[begin]
    top = begin
    for at in range(begin, end - 1):
        if points[at, 1] < points[top, 1] or (points[at, 1] == points[top, 1] and points[at, 0] < points[top, 0]):
            top = at
    whole = points[begin : end - 1].copy()
    for step in range(len(whole)):
        points[begin + step] = whole[(top - begin + step) % len(whole)]
    points[end - 1] = points[begin]
    south: bool = points[begin + 1, 0] == points[begin, 0]
    if south:
        _turned(points, begin, end)
    return end, south


@inlined
def _append(
    points: NDArray[np.int32],
    begin: Number,
    count: int,
    half: Number,
    lows: NDArray[np.int64],
    highs: NDArray[np.int64],
    source: NDArray[np.int32],
) -> int:
    """Write the points of a half arc behind those of the run so far; where the run goes straight on, the point between goes."""
    low, high = lows[half >> 1], highs[half >> 1]
    for step in range(1 if count > begin else 0, high - low):
        at = low + step if half & 1 == 0 else high - 1 - step
        if count - begin >= 2 and _straight(points, count - 2, count - 1, source[at, 0], source[at, 1]):
            count -= 1
        points[count] = source[at]
        count += 1
    return count


@Kernel
def _chains(
    lows: NDArray[np.int64],
    highs: NDArray[np.int64],
    source: NDArray[np.int32],
    sides: NDArray[np.int32],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    slots: NDArray[np.int64],
    degree: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Follow the arcs from node to node, then around what is left.

    Returns:
        Points (P, 2), number of points (A,), faces left and right (A, 2), and codes of both ends (A, 2) with the old nodes.
    """
    total = (highs - lows).sum()
    points = np.empty((total, 2), np.int32)
    lengths, faces, codes = np.empty(len(lows), np.int64), np.empty((len(lows), 2), np.int32), np.empty((len(lows), 2), np.int64)
    seen = np.zeros(len(lows), np.bool_)
    arcs = count = 0
    for rings in (False, True):
        for first in range(2 * len(lows)):
            leaves = start[first >> 1] if first & 1 == 0 else end[first >> 1]
            if seen[first >> 1] or (not rings and (leaves < 0 or degree[leaves >> 2] == 2)):
                continue
            begin, half, arrives = count, first, np.int64(-1)
            while True:
                seen[half >> 1] = True
                count = _append(points, begin, count, half, lows, highs, source)
                arrives = end[half >> 1] if half & 1 == 0 else start[half >> 1]
                if arrives < 0 or degree[arrives >> 2] != 2:
                    break
                onward = half
                for direction in range(4):
                    slot = slots[4 * (arrives >> 2) + direction]
                    if slot >= 0 and slot != half ^ 1:
                        onward = slot
                if seen[onward >> 1]:
                    break
                half = onward
            if rings:
                count, turned = _canonical_ring(points, begin, count)
                leaves = arrives = np.int64(-1)
            else:
                turned = (
                    points[count - 1, 1] < points[begin, 1]
                    or (points[count - 1, 1] == points[begin, 1] and points[count - 1, 0] < points[begin, 0])
                    or (leaves >> 2 == arrives >> 2 and arrives < leaves)
                )
                if turned:
                    _turned(points, begin, count)
            swapped = turned ^ (first & 1 == 1)
            faces[arcs, 0], faces[arcs, 1] = sides[first >> 1, 1 if swapped else 0], sides[first >> 1, 0 if swapped else 1]
            codes[arcs, 0], codes[arcs, 1] = (arrives, leaves) if turned else (leaves, arrives)
            lengths[arcs] = count - begin
            arcs += 1
    return points[:count].copy(), lengths[:arcs].copy(), faces[:arcs].copy(), codes[:arcs].copy()


@Kernel
def _gathered(
    points: NDArray[np.int32], begins: NDArray[np.int64], order: NDArray[np.int64], offsets: NDArray[np.int64]
) -> NDArray[np.int32]:
    """The runs of points in another order."""
    gathered = np.empty_like(points)
    for run in range(len(order)):
        for step in range(offsets[run + 1] - offsets[run]):
            gathered[offsets[run] + step] = points[begins[order[run]] + step]
    return gathered
