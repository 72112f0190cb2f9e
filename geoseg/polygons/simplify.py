"""Leave out vertices of arcs, once for the faces on both sides, so that no boundaries cross and no face collapses."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from geoseg.polygons.arcs import Arcs, longer
from geoseg.polygons.kernel import Kernel, Number, inlined

_APART_PX = 1e-6  # how near to an edge no other vertex may come: more than rounding on the way to the map can bridge
_PER_CELL = 2  # vertices in a cell of the grid, on average
_COLUMNS = 2.0**26  # more than a raster has: the row of a pixel corner times this, and its column, are one number
_WAYS = 4  # entries below each entry of the queue
# Columns of the table of links, one row for each vertex: its neighbours along the arc, -1 at an end; its state; and the last entry
# in the list of those that wait for it to leave, -1 if there is none.
_BEFORE, _AFTER, _STATE, _WAITS = range(4)
_FREE, _QUEUED, _GONE = -1, 0, 1  # states of a vertex; it is -2 - w while it waits for vertex w, which lies in its triangle


def simplify(arcs: Arcs, tolerance: float, method: Literal["dp", "vw"] = "dp", scale: tuple[float, float] = (1.0, 1.0)) -> Arcs:
    """Leave out the vertices that matter least; nodes, and the boundary of the valid area, stay as they are.

    Vertices leave one by one, the least important first, among equals (for ``"dp"``, of one power of two) the upper and then
    the left one. A vertex B between A and C leaves only if the triangle ABC holds no other vertex, so no boundary is ever
    swept over a vertex: edges cannot cross, and rings keep what is inside of them. What is in the way may leave later, then
    B is tried again. A ring of one arc keeps three corners, and of several arcs between the same two nodes one at most
    becomes a straight line. So the faces form a valid coverage for any tolerance, and the result does not depend on the
    order of the arcs.

    Args:
        arcs: joined, traced or smoothed.
        tolerance: in pixels, or in the unit of ``scale``; 0 leaves everything as it is.
        method: how important a vertex is. ``"dp"``: the distance from the line at which Douglas and Peucker (1973) take it
            in, for a ring from its first point to the point farthest from it; vertices within the tolerance leave, and
            where nothing is in the way the rest is the classic result. ``"vw"``: the area of ABC, as Visvalingam and Whyatt
            (1993) have it, with the neighbours that B has by then; vertices leave while there is one of up to tolerance²,
            as in GEOS' CoverageSimplifier.
        scale: size of a pixel along columns and rows.

    Returns:
        The same arcs with fewer points.

    References:
        D. H. Douglas, T. K. Peucker, "Algorithms for the reduction of the number of points required to represent a
        digitized line or its caricature", Cartographica 10(2), 1973, doi:10.3138/FM57-6770-U75U-7727.
        M. Visvalingam, J. D. Whyatt, "Line generalisation by repeated elimination of points", The Cartographic Journal
        30(1), 1993, doi:10.1179/000870493786962263.
    """
    if tolerance <= 0 or len(arcs.points) == 0:
        return arcs
    moves = (arcs.left >= 0) & (arcs.right >= 0)
    points = arcs.points.astype(np.float64)
    by_area = method == "vw"
    limit = tolerance * tolerance / (scale[0] * scale[1]) if by_area else tolerance
    limit = min(limit, np.finfo(np.float64).max)  # less than the infinite importance of what has to stay
    if by_area:
        importance = _triangles(points, arcs.offsets, moves)
    else:
        importance = _distances(points * scale, arcs.offsets, moves)
        mantissa, exponent = np.frexp(importance)  # by powers of two, what leaves next is near in memory, which halves the time
        importance = np.where(importance <= limit, np.ldexp(np.sign(mantissa) / 2, exponent), np.inf)
    pair, straight = _pairs(arcs)
    kept = _thin(points, arcs.offsets, importance, limit, by_area, pair, straight, *_grid(points))
    return replace(arcs, points=arcs.points[kept], offsets=np.concatenate([[0], np.cumsum(kept)])[arcs.offsets])


def _pairs(arcs: Arcs) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each arc the number of the pair of nodes it joins, (A,), and whether a straight line joins the two, (pairs,)."""
    nodes = np.sort(np.stack([arcs.start, arcs.end]) >> 2, axis=0)
    pairs, pair = np.unique(nodes[0] * arcs.nodes + nodes[1], return_inverse=True)
    straight = np.zeros(len(pairs), np.bool_)
    straight[pair[np.diff(arcs.offsets) == 2]] = True
    return pair, straight


def _grid(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """An index of vertices by square cells.

    Returns:
        Column and row of the origin and the size of a cell (3,); the number of columns and of rows of cells (2,); the vertices
        cell by cell, row by row (P,); where the cells begin among them (cells + 1,).
    """
    low, high = points.min(axis=0), points.max(axis=0)
    size = max(1.0, float(np.sqrt(_PER_CELL * np.prod(high - low + 1) / len(points))))
    cols, rows = (int(cells) + 1 for cells in (high - low) // size)
    frame = np.array([low[0], low[1], size])
    return frame, np.array([cols, rows]), *_sorted_by_cell(points, frame, cols, rows)


@inlined
def _cell(value: float, low: float, size: float, cells: Number) -> int:
    """Column or row of the cell that holds a coordinate; the outermost one where it lies outside."""
    return int(min(max((value - low) / size, 0.0), cells - 1.0))


@Kernel
def _sorted_by_cell(
    points: NDArray[np.float64], frame: NDArray[np.float64], cols: int, rows: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """See `_grid`."""
    begins = np.zeros(cols * rows + 1, np.int64)
    cells = np.empty(len(points), np.int64)
    for at in range(len(points)):
        cells[at] = _cell(points[at, 1], frame[1], frame[2], rows) * cols + _cell(points[at, 0], frame[0], frame[2], cols)
        begins[cells[at]] += 1
    begins = np.cumsum(begins)
    members = np.empty(len(points), np.int32)
    for at in range(len(points) - 1, -1, -1):
        begins[cells[at]] -= 1
        members[begins[cells[at]]] = at
    return members, begins


@inlined
def _twice_area(points: NDArray[np.float64], one: Number, two: Number, three: Number) -> float:
    """Twice the area of a triangle, positive if it turns from columns to rows."""
    col, row = points[one, 0], points[one, 1]
    return float((points[two, 0] - col) * (points[three, 1] - row) - (points[two, 1] - row) * (points[three, 0] - col))


@Kernel
def _triangles(points: NDArray[np.float64], offsets: NDArray[np.int64], moves: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Area of the triangle of each vertex and its neighbours; infinite where a vertex has to stay."""
    importance = np.full(len(points), np.inf)
    for arc in range(len(moves)):
        if moves[arc]:
            for at in range(offsets[arc] + 1, offsets[arc + 1] - 1):
                importance[at] = abs(_twice_area(points, at - 1, at, at + 1)) / 2
    return importance


@inlined
def _distance(points: NDArray[np.float64], at: Number, begin: Number, end: Number) -> float:
    """Distance of a point from the segment between two others."""
    col, row = points[end, 0] - points[begin, 0], points[end, 1] - points[begin, 1]
    to_col, to_row = points[at, 0] - points[begin, 0], points[at, 1] - points[begin, 1]
    length2 = col * col + row * row
    along = to_col * col + to_row * row
    if along <= 0 or length2 == 0:
        return float(np.sqrt(to_col * to_col + to_row * to_row))
    if along >= length2:
        return float(np.sqrt((points[at, 0] - points[end, 0]) ** 2 + (points[at, 1] - points[end, 1]) ** 2))
    return float(abs((to_row * col - to_col * row) / length2) * np.sqrt(length2))


@Kernel
def _distances(points: NDArray[np.float64], offsets: NDArray[np.int64], moves: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Up to which tolerance Douglas and Peucker keep each vertex; infinite where it has to stay."""
    importance = np.full(len(points), np.inf)
    ends = np.empty((offsets[1:] - offsets[:-1]).max(), np.int64)  # ends of the runs that wait, the next one last
    for arc in range(len(moves)):
        if not moves[arc]:
            continue
        begin, waiting = offsets[arc], 1
        ends[0] = offsets[arc + 1] - 1
        while waiting > 0:
            end = ends[waiting - 1]
            if end - begin < 2:
                begin, waiting = end, waiting - 1
                continue
            far, farthest = -1.0, begin
            for at in range(begin + 1, end):
                distance = _distance(points, at, begin, end)
                if distance > far or (distance == far and _is_above(points, at, farthest)):
                    far, farthest = distance, at
            importance[farthest] = min(far, importance[begin], importance[end])
            ends[waiting] = farthest
            waiting += 1
    return importance


@inlined
def _is_above(points: NDArray[np.float64], one: Number, other: Number) -> bool:
    above: bool = points[one, 1] < points[other, 1] or (points[one, 1] == points[other, 1] and points[one, 0] < points[other, 0])
    return above


# The queue is a heap in a table with a row for each entry: importance, pixel corner and number of a vertex. What each
# comparison needs lies side by side; going through the vertices instead would miss the processor's caches every time.


@inlined
def _comes_first(queue: NDArray[np.float64], one: Number, other: Number) -> bool:
    """Whether an entry of the queue is less important than another, or equally so and above it, or left of it."""
    if queue[one, 0] != queue[other, 0]:
        less: bool = queue[one, 0] < queue[other, 0]
        return less
    above: bool = queue[one, 1] < queue[other, 1]
    return above


@inlined
def _swap(queue: NDArray[np.float64], one: Number, other: Number) -> None:
    for column in range(3):
        queue[one, column], queue[other, column] = queue[other, column], queue[one, column]


@inlined
def _sink(queue: NDArray[np.float64], size: int, at: int) -> None:
    """Move an entry of the queue down until none of those below comes before it."""
    while _WAYS * at + 1 < size:
        least = _WAYS * at + 1
        for below in range(least + 1, min(least + _WAYS, size)):
            if _comes_first(queue, below, least):
                least = below
        if not _comes_first(queue, least, at):
            return
        _swap(queue, least, at)
        at = least


@inlined
def _put(queue: NDArray[np.float64], size: int, points: NDArray[np.float64], importance: NDArray[np.float64], vertex: Number) -> None:
    """Write an entry behind those of the queue. No two vertices have the same nearest pixel corner."""
    queue[size, 0] = importance[vertex]
    queue[size, 1] = np.floor(points[vertex, 1] + 0.5) * _COLUMNS + np.floor(points[vertex, 0] + 0.5)
    queue[size, 2] = vertex


@inlined
def _add(
    queue: NDArray[np.float64], size: int, points: NDArray[np.float64], importance: NDArray[np.float64], vertex: Number
) -> NDArray[np.float64]:
    """Add a vertex to the queue; returns the queue, longer if need be."""
    if size == len(queue):
        queue = longer(queue, size + 1)
    _put(queue, size, points, importance, vertex)
    while size > 0 and _comes_first(queue, size, (size - 1) // _WAYS):
        _swap(queue, size, (size - 1) // _WAYS)
        size = (size - 1) // _WAYS
    return queue


@inlined
def _reach(
    points: NDArray[np.float64], one: Number, other: Number, low: float, high: float, west: float, east: float
) -> tuple[float, float]:
    """Widen an extent along columns by that of an edge between two rows."""
    if points[one, 1] > points[other, 1]:
        one, other = other, one
    col, row, to_col, to_row = points[one, 0], points[one, 1], points[other, 0], points[other, 1]
    if to_row < low or row > high:
        return west, east
    slope = (to_col - col) / (to_row - row) if to_row > row else 0.0
    enter = col + slope * (low - row) if row < low else col
    leave = to_col - slope * (to_row - high) if to_row > high else to_col
    return min(west, enter, leave), max(east, enter, leave)


@inlined
def _is_beyond(points: NDArray[np.float64], one: Number, two: Number, other: Number, turn: float) -> bool:
    """Whether a point lies clearly outside of an edge of a triangle that turns to the right (1) or to the left (-1)."""
    length = np.hypot(points[two, 0] - points[one, 0], points[two, 1] - points[one, 1])
    beyond: bool = turn * _twice_area(points, one, two, other) < -_APART_PX * length
    return beyond


@inlined
def _is_at(points: NDArray[np.float64], one: Number, other: Number) -> bool:
    same: bool = points[one, 0] == points[other, 0] and points[one, 1] == points[other, 1]
    return same


@inlined
def _in_the_way(
    points: NDArray[np.float64],
    one: Number,
    two: Number,
    three: Number,
    frame: NDArray[np.float64],
    cells: NDArray[np.int64],
    members: NDArray[np.int32],
    begins: NDArray[np.int64],
    ends: NDArray[np.int64],
) -> int:
    """A vertex in a triangle, or too near to it, other than its own corners and what shares their places; -1 if there is none.

    Rounding cannot hide one: the margin is far wider.
    """
    west, east = min(points[one, 0], points[two, 0], points[three, 0]), max(points[one, 0], points[two, 0], points[three, 0])
    north, south = min(points[one, 1], points[two, 1], points[three, 1]), max(points[one, 1], points[two, 1], points[three, 1])
    west, east, north, south = west - _APART_PX, east + _APART_PX, north - _APART_PX, south + _APART_PX
    turn = 1.0 if _twice_area(points, one, two, three) >= 0 else -1.0
    first, last = _cell(north, frame[1], frame[2], cells[1]), _cell(south, frame[1], frame[2], cells[1])
    for line in range(first, last + 1):
        begin, end = west, east
        if first < last:
            low, high = frame[1] + line * frame[2] - _APART_PX, frame[1] + (line + 1) * frame[2] + _APART_PX
            begin, end = _reach(points, one, two, low, high, np.inf, -np.inf)
            begin, end = _reach(points, two, three, low, high, begin, end)
            begin, end = _reach(points, three, one, low, high, begin, end)
            begin, end = begin - 2 * _APART_PX, end + 2 * _APART_PX
        for col in range(_cell(begin, frame[0], frame[2], cells[0]), _cell(end, frame[0], frame[2], cells[0]) + 1):
            cell = line * cells[0] + col
            for at in range(begins[cell], ends[cell]):
                other = members[at]
                if (
                    west <= points[other, 0] <= east
                    and north <= points[other, 1] <= south
                    and not _is_beyond(points, one, two, other, turn)
                    and not _is_beyond(points, two, three, other, turn)
                    and not _is_beyond(points, three, one, other, turn)
                    and other != two
                    and not _is_at(points, other, one)
                    and not _is_at(points, other, three)
                ):
                    return int(other)
    return -1


@inlined
def _would_collapse(
    points: NDArray[np.float64],
    offsets: NDArray[np.int64],
    links: NDArray[np.int32],
    pair: NDArray[np.int64],
    straight: NDArray[np.bool_],
    at: int,
) -> bool:
    """Whether a ring of one arc would lose its third corner, or two nodes be joined by a second straight line."""
    one, three = links[at, _BEFORE], links[at, _AFTER]
    if links[one, _BEFORE] < 0 and links[three, _AFTER] < 0:
        arc = np.searchsorted(offsets, at, side="right") - 1
        taken: bool = straight[pair[arc]]
        return taken
    if links[one, _BEFORE] < 0 and links[links[three, _AFTER], _AFTER] < 0:
        three = links[three, _AFTER]
    elif links[three, _AFTER] < 0 and links[links[one, _BEFORE], _BEFORE] < 0:
        one = links[one, _BEFORE]
    else:
        return False
    return _is_at(points, one, three)


@inlined
def _forget(
    points: NDArray[np.float64],
    at: int,
    frame: NDArray[np.float64],
    cells: NDArray[np.int64],
    members: NDArray[np.int32],
    begins: NDArray[np.int64],
    ends: NDArray[np.int64],
) -> None:
    """Take a vertex out of the grid."""
    cell = _cell(points[at, 1], frame[1], frame[2], cells[1]) * cells[0] + _cell(points[at, 0], frame[0], frame[2], cells[0])
    ends[cell] -= 1
    for member in range(begins[cell], ends[cell]):
        if members[member] == at:
            members[member] = members[ends[cell]]


@Kernel
def _thin(
    points: NDArray[np.float64],
    offsets: NDArray[np.int64],
    importance: NDArray[np.float64],
    limit: float,
    by_area: bool,
    pair: NDArray[np.int64],
    straight: NDArray[np.bool_],
    frame: NDArray[np.float64],
    cells: NDArray[np.int64],
    members: NDArray[np.int32],
    begins: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Leave out the vertices up to a limit of importance that are free to go; returns which ones stay, (P,)."""
    ends, links = begins[1:].copy(), np.empty((len(points), 4), np.int32)
    queue, size = np.empty(((importance <= limit).sum() + 1024, 3), np.float64), 0
    for at in range(len(points)):
        links[at, _BEFORE], links[at, _AFTER], links[at, _STATE], links[at, _WAITS] = at - 1, at + 1, _FREE, -1
        if importance[at] <= limit:
            _put(queue, size, points, importance, at)
            links[at, _STATE], size = _QUEUED, size + 1
    for arc in range(len(offsets) - 1):
        links[offsets[arc], _BEFORE] = links[offsets[arc + 1] - 1, _AFTER] = -1
    for entry in range(size // _WAYS, -1, -1):
        _sink(queue, size, entry)
    waiting, entries = np.empty((1024, 2), np.int32), 0  # who waits, and the entry before in the same list
    while size > 0 and queue[0, 0] <= limit:
        at = int(queue[0, 2])
        if links[at, _STATE] == _QUEUED and queue[0, 0] < importance[at]:  # its triangle has grown since
            queue[0, 0] = importance[at]
            _sink(queue, size, 0)
            continue
        size -= 1
        _swap(queue, 0, size)
        _sink(queue, size, 0)
        if links[at, _STATE] != _QUEUED:  # a second entry
            continue
        links[at, _STATE] = _FREE
        one, three = links[at, _BEFORE], links[at, _AFTER]
        if _would_collapse(points, offsets, links, pair, straight, at):
            continue
        blocker = _in_the_way(points, one, at, three, frame, cells, members, begins, ends)
        if blocker >= 0:
            if entries == len(waiting):
                waiting = longer(waiting, entries + 1)
            waiting[entries, 0], waiting[entries, 1] = at, links[blocker, _WAITS]
            links[blocker, _WAITS], links[at, _STATE] = entries, -2 - blocker
            entries += 1
            continue
        links[at, _STATE], links[three, _BEFORE], links[one, _AFTER] = _GONE, one, three
        _forget(points, at, frame, cells, members, begins, ends)
        if links[one, _BEFORE] < 0 and links[three, _AFTER] < 0:
            straight[pair[np.searchsorted(offsets, at, side="right") - 1]] = True
        entry = links[at, _WAITS]
        while entry >= 0:
            other = waiting[entry, 0]
            if links[other, _STATE] == -2 - at:
                queue = _add(queue, size, points, importance, other)
                links[other, _STATE], size = _QUEUED, size + 1
            entry = waiting[entry, 1]
        for other in (one, three):
            if links[other, _BEFORE] < 0 or links[other, _AFTER] < 0:
                continue
            if by_area:
                area = abs(_twice_area(points, links[other, _BEFORE], other, links[other, _AFTER])) / 2
                if area < importance[other]:
                    links[other, _STATE] = _FREE
                importance[other] = area
            if links[other, _STATE] != _QUEUED and importance[other] <= limit:
                queue = _add(queue, size, points, importance, other)
                links[other, _STATE], size = _QUEUED, size + 1
    kept: NDArray[np.bool_] = links[:, _STATE] != _GONE
    return kept
