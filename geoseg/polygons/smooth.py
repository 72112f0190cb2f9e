"""Smooth the staircase of pixel edges, once for the faces on both sides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from geoseg.polygons.arcs import Arcs
from geoseg.polygons.kernel import Kernel, Number, inlined

REACH_PX = 0.45  # a vertex stays so close to its pixel corner, along columns and along rows

_ROUNDS = 12
_STRAIGHT_PX = 1e-9


def smooth(arcs: Arcs, rounds: int = _ROUNDS) -> Arcs:
    """Relax the boundaries between faces as constrained elastic surface nets (Gibson 1998).

    Each pixel corner on a boundary is a vertex that moves halfway to the mean of its neighbours, again and again, but never
    leaves the box of ±0.45 pixels around its corner. The boundary of the valid area stays as it is.

    No two edges can cross, and no vertex can meet another: the boxes of different corners are disjoint, each holds one
    vertex, and an edge stays in the convex hull of two boxes that are neighbours in a row or column, which meets no other
    box; two such hulls meet in the box of a common vertex at most. So the faces stay neighbours as they are, whatever the
    number of rounds, and what is smoothed is a valid coverage.

    Args:
        arcs: joined, with points on the pixel grid, int32.
        rounds: how often the vertices move; all move at once, so their order does not matter.

    Returns:
        The same arcs with points float64; vertices on a straight line are dropped.

    Reference:
        S. F. Frisken Gibson, "Constrained Elastic Surface Nets: Generating Smooth Surfaces from Binary Segmented Data",
        MICCAI 1998, doi:10.1007/BFb0056277.
    """
    moves = (arcs.left >= 0) & (arcs.right >= 0)
    points, offsets = _unit_steps(arcs.points, arcs.offsets, moves)
    nodes = np.zeros((arcs.nodes, 2))
    held = np.zeros(arcs.nodes, np.bool_)
    beside = np.full(4 * arcs.nodes, -1, np.int64)  # the vertex next to each node in each direction
    for codes, ends, inward in ((arcs.start, offsets[:-1], 1), (arcs.end, offsets[1:] - 1, -1)):
        open_ = codes >= 0
        nodes[codes[open_] >> 2] = points[ends[open_]]
        held[codes[open_ & ~moves] >> 2] = True
        beside[codes[open_]] = ends[open_] + inward
    _relax(points, offsets, moves, arcs.start, arcs.end, nodes, held, beside.reshape(-1, 4), rounds)
    points, offsets = _bent(points, offsets, moves)
    return replace(arcs, points=points, offsets=offsets)


@Kernel
def _unit_steps(
    corners: NDArray[np.int32], offsets: NDArray[np.int64], moves: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Put a vertex on each pixel corner along the arcs that move; returns points and offsets."""
    begins = np.zeros(len(offsets), np.int64)
    for arc in range(len(moves)):
        count = offsets[arc + 1] - offsets[arc]
        for at in range(offsets[arc] + 1, offsets[arc + 1] if moves[arc] else 0):
            count += abs(corners[at, 0] - corners[at - 1, 0]) + abs(corners[at, 1] - corners[at - 1, 1]) - 1
        begins[arc + 1] = begins[arc] + count
    points = np.empty((begins[-1], 2), np.float64)
    for arc in range(len(moves)):
        count = begins[arc]
        points[count, 0], points[count, 1] = corners[offsets[arc], 0], corners[offsets[arc], 1]
        for at in range(offsets[arc] + 1, offsets[arc + 1]):
            across, down = corners[at, 0] - corners[at - 1, 0], corners[at, 1] - corners[at - 1, 1]
            steps = max(abs(across), abs(down)) if moves[arc] else 1
            for step in range(1, steps + 1):
                count += 1
                points[count, 0] = corners[at - 1, 0] + across // steps * step
                points[count, 1] = corners[at - 1, 1] + down // steps * step
    return points, begins


@inlined
def _moved(at: float, mean: float) -> float:
    """One coordinate of a vertex halfway to the mean of its neighbours, inside of the box around its pixel corner."""
    corner = np.floor(at + 0.5)
    return float(min(max((at + mean) / 2, corner - REACH_PX), corner + REACH_PX))


@Kernel
def _relax(
    points: NDArray[np.float64],
    offsets: NDArray[np.int64],
    moves: NDArray[np.bool_],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    nodes: NDArray[np.float64],
    held: NDArray[np.bool_],
    beside: NDArray[np.int64],
    rounds: int,
) -> None:
    """Move the vertices in place. ``nodes`` (N, 2) are the places of the nodes, ``beside`` (N, 4) the vertices next to them."""
    for _ in range(rounds):
        for node in range(len(nodes)):
            col, row, count = 0.0, 0.0, 0
            for at in beside[node]:
                if at >= 0:
                    col, row, count = col + points[at, 0], row + points[at, 1], count + 1
            if count > 0 and not held[node]:
                nodes[node, 0], nodes[node, 1] = _moved(nodes[node, 0], col / count), _moved(nodes[node, 1], row / count)
        for arc in range(len(moves)):
            if not moves[arc]:
                continue
            first, last = offsets[arc], offsets[arc + 1] - 1
            around = last - 1 if start[arc] < 0 else first  # a closed arc begins after the point before its last
            col, row = points[around, 0], points[around, 1]
            for at in range(first, last):
                here_col, here_row = points[at, 0], points[at, 1]
                points[at, 0] = _moved(here_col, (col + points[at + 1, 0]) / 2)
                points[at, 1] = _moved(here_row, (row + points[at + 1, 1]) / 2)
                col, row = here_col, here_row
            if start[arc] < 0:
                points[last] = points[first]
            else:
                points[first] = nodes[start[arc] >> 2]
                points[last] = nodes[end[arc] >> 2]


@inlined
def _is_straight(points: NDArray[np.float64], one: Number, two: Number, three: Number) -> bool:
    col, row = points[three, 0] - points[one, 0], points[three, 1] - points[one, 1]
    cross = col * (points[two, 1] - points[one, 1]) - row * (points[two, 0] - points[one, 0])
    straight: bool = abs(cross) <= _STRAIGHT_PX * np.hypot(col, row)
    return straight


@Kernel
def _bent(
    points: NDArray[np.float64], offsets: NDArray[np.int64], moves: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Drop the vertices at which an arc that moves goes straight on; the points are moved up in place."""
    begins = np.zeros(len(offsets), np.int64)
    count = 0
    for arc in range(len(moves)):
        for at in range(offsets[arc], offsets[arc + 1]):
            inside = moves[arc] and offsets[arc] < at < offsets[arc + 1] - 1
            if not inside or not _is_straight(points, count - 1, at, at + 1):
                points[count] = points[at]
                count += 1
        begins[arc + 1] = count
    return points[:count].copy(), begins
