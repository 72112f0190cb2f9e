"""Trace the boundaries between the classes of a raster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from geoseg.errors import CoverageError
from geoseg.polygons.kernel import Kernel, Number, inlined
from geoseg.window import Window

Block: TypeAlias = tuple[Window, NDArray[np.uint8], NDArray[np.uint8] | None]
"""A window of a class raster, its classes (H, W), and its confidence (H, W): 0 to 254 for 0 to 1, 255 for no data."""

Value = TypeVar("Value", np.int32, np.int64, np.float64)

_BAND_PIXELS = 1 << 20  # traced at a time: bounds the scratch memory of a band, whatever its classes

# Columns of the table of vertices, one row for each corner of the pixel grid where an arc turns, begins or ends.
_ROW, _COL, _VERTICAL, _HORIZONTAL, _LEFT, _RIGHT = range(6)
# Columns of the table of tallies, one row for each label.
_CLASS, _PIXELS, _ROWS, _COLS, _CONFIDENCE, _CONFIDENT = range(6)
# Directions in which an arc leaves a node.
NORTH, EAST, SOUTH, WEST = range(4)


@dataclass(frozen=True, eq=False)
class Arcs:
    """The boundaries of a class raster as arcs, and the faces on their sides.

    An arc runs along pixel edges from node to node. A node is a pixel corner where three or four edges meet, or where
    an arc crosses from one traced band to the next. An arc that meets no node is closed: its first point is its last.
    Faces are 4-connected sets of pixels of one class, numbered by their first pixel in row-major order.

    Attributes:
        points: (P, 2) int32, column and row of pixel corners where arcs begin, turn and end; float64 where boundaries were moved.
        offsets: (A + 1,) int64, arc ``a`` is ``points[offsets[a]:offsets[a + 1]]``.
        left: (A,) int32, face on the left of the arc, seen along it with row 0 on top; -1 outside and where no data is.
        right: (A,) int32, face on the right of the arc.
        start: (A,) int64, where the arc leaves its first node: ``4 * node + direction``; -1 if it is closed.
        end: (A,) int64, the same for the reversed arc and its last node.
        nodes: number of nodes.
        class_id: (F,) uint8, class of each face.
        pixels: (F,) int64, number of pixels of each face.
        centroid: (F, 2) float64, mean column and row of the pixel centres of each face; the first pixel's is (0.5, 0.5).
        confidence: (F,) float32, mean confidence of each face, 0 to 1; NaN where it is not known.
    """

    points: NDArray[Any]
    offsets: NDArray[np.int64]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    nodes: int
    class_id: NDArray[np.uint8]
    pixels: NDArray[np.int64]
    centroid: NDArray[np.float64]
    confidence: NDArray[np.float32]


def trace(blocks: Iterable[Block], shape: tuple[int, int]) -> Arcs:
    """Trace a class raster; memory follows the number of arcs, not of pixels.

    Args:
        blocks: cover each pixel once, in any layout and order. Blocks wait until a band over the full width is
            complete, so rows of blocks from top to bottom are best. Class 0 is outside of every face.
        shape: height and width of the raster.

    Raises:
        CoverageError: if the blocks do not cover each pixel once.
    """
    tracer = _Tracer(shape[1])
    for classes, confidence in _bands(blocks, shape):
        tracer.add(classes, confidence)
    return tracer.finish()


def _bands(blocks: Iterable[Block], shape: tuple[int, int]) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8] | None]]:
    """Bands over the full width, top to bottom, as soon as their blocks have come."""
    row, waiting = 0, list[Block]()
    for block in blocks:
        waiting.append(block)
        if not Window.of(shape).contains(block[0]) or block[0].row < row:
            raise CoverageError(f"class raster of {shape[0]}x{shape[1]} pixels: {block[0]} lies outside or comes twice; a bug in geoseg")
        while across := _across(waiting, row, shape[1]):
            end = min(window.end_row for window, *_ in across)
            yield _stacked(across, row, end)
            row, waiting = end, [block for block in waiting if block[0].end_row > end]
    if row < shape[0] or waiting:
        raise CoverageError(f"class raster of {shape[0]}x{shape[1]} pixels: no complete row {row} in its blocks; a bug in geoseg")


def _across(waiting: list[Block], row: int, width: int) -> list[Block]:
    """The blocks that fill a row, left to right, or none if some have not come."""
    across = sorted((block for block in waiting if block[0].row <= row), key=lambda block: block[0].col)
    col = 0
    for window, *_ in across:
        if window.col != col:
            return []
        col = window.end_col
    return across if col == width else []


def _stacked(across: list[Block], row: int, end: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    def joined(values: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        return np.require(values[0] if len(values) == 1 else np.hstack(values), np.uint8, ["C", "W"])

    cuts = [slice(row - window.row, end - window.row) for window, *_ in across]
    classes = joined([block[1][cut] for block, cut in zip(across, cuts, strict=True)])
    confidence = [block[2][cut] for block, cut in zip(across, cuts, strict=True) if block[2] is not None]
    return classes, joined(confidence) if len(confidence) == len(across) else None


class _Tracer:
    """Traces bands of rows one below the other.

    The state between bands is the last row as runs (first column, class, label), and the vertical edges that hang from
    it. Labels are provisional: a union-find forest joins those that turn out to be one face.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._row = 0
        self._runs = np.zeros((0, 3), np.int32)
        self._forest = np.zeros((1024, 1), np.int32)
        self._tallies = np.zeros((1024, 6), np.int64)
        self._labels = 1  # label 0 is outside
        self._nodes = 0  # number of the first node on the upper border of the next band
        self._points: list[NDArray[np.int32]] = []
        self._pieces: list[tuple[NDArray[np.int32] | NDArray[np.int64], ...]] = []

    def add(self, classes: NDArray[np.uint8], confidence: NDArray[np.uint8] | None) -> None:
        """Trace the next rows, (H, W) each."""
        step = max(1, _BAND_PIXELS // self._width)
        for top in range(0, len(classes), step):
            part = slice(top, top + step)
            self._scan(classes[part], np.empty((0, 0), np.uint8) if confidence is None else confidence[part])

    def finish(self) -> Arcs:
        """Close what is open with a row of outside, and number the faces."""
        self._scan(np.zeros((1, self._width), np.uint8), np.empty((0, 0), np.uint8))
        lengths, left, right, start, end = (np.concatenate(column) for column in zip(*self._pieces, strict=True))
        self._pieces.clear()
        faces, tallies = _number_faces(self._forest[: self._labels], self._tallies[: self._labels])
        pixels = tallies[:, _PIXELS]
        with np.errstate(invalid="ignore"):
            confidence = tallies[:, _CONFIDENCE] / (254 * tallies[:, _CONFIDENT])
        return Arcs(
            points=_drained(self._points),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            left=faces[left],
            right=faces[right],
            start=start,
            end=end,
            nodes=self._nodes,
            class_id=tallies[:, _CLASS].astype(np.uint8),
            pixels=pixels,
            centroid=tallies[:, [_COLS, _ROWS]] / pixels[:, None] + 0.5,
            confidence=confidence.astype(np.float32),
        )

    def _scan(self, classes: NDArray[np.uint8], confidence: NDArray[np.uint8]) -> None:
        vertices, nodes, hanging, self._runs, self._forest, self._tallies, self._labels = _scan(
            classes, confidence, self._row, self._runs, self._forest, self._tallies, self._labels
        )
        points, lengths, sides, ends = _chain(vertices)
        codes = np.where(ends < 0, -1, ends.astype(np.int64) + 4 * self._nodes)
        self._points.append(points)
        self._pieces.append((lengths, sides[:, 0], sides[:, 1], codes[:, 0], codes[:, 1]))
        self._nodes += nodes - hanging
        self._row += len(classes)


def _drained(pieces: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    """The pieces (N, 2) in one array; each is let go as soon as it is copied, so that memory does not double."""
    whole, at = np.empty((sum(map(len, pieces)), 2), np.int32), 0
    pieces.reverse()
    while pieces:
        piece = pieces.pop()
        whole[at : at + len(piece)] = piece
        at += len(piece)
    return whole


@inlined
def longer(table: NDArray[Value], length: int) -> NDArray[Value]:
    """A copy of a table (N, C) with room for twice as many rows, and for ``length`` rows at least."""
    room = np.empty((max(2 * table.shape[0], length), table.shape[1]), table.dtype)
    for row in range(table.shape[0]):
        for column in range(table.shape[1]):
            room[row, column] = table[row, column]
    return room


@inlined
def _root(forest: NDArray[np.int32], label: int) -> int:
    while forest[label, 0] != label:
        forest[label, 0] = forest[forest[label, 0], 0]
        label = forest[label, 0]
    return label


@inlined
def _find_runs(row: NDArray[np.uint8], runs: NDArray[np.int32]) -> int:
    """Write the first column and the class of each run of a row, without the outside before the first; count them."""
    count, before = 0, 0
    for col in range(row.size):
        runs[count, 0] = col
        runs[count, 1] = row[col]
        count += row[col] != before
        before = row[col]
    runs[count, 0] = row.size
    runs[count, 1] = 0
    return count + (before != 0)


@inlined
def _label_runs(
    above: NDArray[np.int32], runs: NDArray[np.int32], forest: NDArray[np.int32], tallies: NDArray[np.int64], labels: int
) -> int:
    """Label the runs of a row after the runs above that touch them; returns the number of labels in use."""
    first = 0
    for run in range(len(runs)):
        if runs[run, 1] == 0:
            runs[run, 2] = 0
            continue
        label, end = 0, runs[run + 1, 0]
        while first + 1 < len(above) and above[first + 1, 0] <= runs[run, 0]:
            first += 1
        other = first
        while other < len(above) and above[other, 0] < end:
            if above[other, 1] == runs[run, 1]:
                root = _root(forest, above[other, 2])
                if label == 0:
                    label = root
                elif root != label:
                    low, high = min(label, root), max(label, root)
                    forest[high, 0] = low
                    label = low
            other += 1
        if label == 0:
            label = labels
            forest[label, 0] = label
            for column in range(tallies.shape[1]):
                tallies[label, column] = 0
            tallies[label, _CLASS] = runs[run, 1]
            labels += 1
        runs[run, 2] = label
    return labels


@inlined
def _tally_runs(row: int, runs: NDArray[np.int32], confidence: NDArray[np.uint8], tallies: NDArray[np.int64]) -> None:
    """Count the pixels of the runs of a row for their labels."""
    for run in range(len(runs) - 1):
        label, col, end = runs[run, 2], runs[run, 0], runs[run + 1, 0]
        if label == 0:
            continue
        tallies[label, _PIXELS] += end - col
        tallies[label, _ROWS] += np.int64(row) * (end - col)
        tallies[label, _COLS] += np.int64(col + end - 1) * (end - col) // 2
        total, known = 0, 0
        for value in confidence[col:end]:
            total += value if value < 255 else 0
            known += value < 255
        tallies[label, _CONFIDENCE] += total
        tallies[label, _CONFIDENT] += known


@inlined
def _vertex(vertices: NDArray[np.int32], count: int, row: int, col: Number, left: Number, right: Number) -> int:
    """Add a vertex, and the labels beside the edge that leaves it (at a turn, the horizontal one); returns their number."""
    vertices[count, _ROW] = row
    vertices[count, _COL] = col
    vertices[count, _LEFT] = left
    vertices[count, _RIGHT] = right
    return count + 1


@inlined
def _link(vertices: NDArray[np.int32], one: Number, other: Number, along: int) -> None:
    vertices[one, along] = other
    vertices[other, along] = one


@inlined
def _add_turn(
    vertices: NDArray[np.int32],
    count: int,
    open_: NDArray[np.int32],
    west: int,
    row: int,
    col: Number,
    goes: tuple[bool, bool, bool, bool],
    labels: tuple[Number, Number, Number, Number],
) -> tuple[int, int]:
    """Add a corner with one upright and one level edge; see `_trace_row`."""
    nw, ne, se, sw = labels
    if goes[NORTH]:
        _link(vertices, open_[col], count, _VERTICAL)
    else:
        open_[col] = count
    if goes[WEST]:
        _link(vertices, west, count, _HORIZONTAL)
        return _vertex(vertices, count, row, col, sw, nw), west
    return _vertex(vertices, count, row, col, ne, se), count


@inlined
def _add_node(
    vertices: NDArray[np.int32],
    count: int,
    open_: NDArray[np.int32],
    west: int,
    row: int,
    col: Number,
    goes: tuple[bool, bool, bool, bool],
    labels: tuple[Number, Number, Number, Number],
    code: int,
) -> tuple[int, int]:
    """Add the end of an arc for each edge of a node, ``code`` and the direction in place of a link; see `_trace_row`."""
    nw, ne, se, sw = labels
    if goes[NORTH] and open_[col] >= 0:
        _link(vertices, open_[col], count, _VERTICAL)
        vertices[count, _HORIZONTAL] = -1 - (code + NORTH)
        count = _vertex(vertices, count, row, col, nw, ne)
    if goes[WEST]:
        _link(vertices, west, count, _HORIZONTAL)
        vertices[count, _VERTICAL] = -1 - (code + WEST)
        count = _vertex(vertices, count, row, col, sw, nw)
    if goes[EAST]:
        west = count
        vertices[count, _VERTICAL] = -1 - (code + EAST)
        count = _vertex(vertices, count, row, col, ne, se)
    if goes[SOUTH]:
        open_[col] = count
        vertices[count, _HORIZONTAL] = -1 - (code + SOUTH)
        count = _vertex(vertices, count, row, col, se, sw)
    return count, west


@inlined
def _trace_row(
    row: int,
    above: NDArray[np.int32],
    runs: NDArray[np.int32],
    open_: NDArray[np.int32],
    vertices: NDArray[np.int32],
    count: int,
    nodes: int,
) -> tuple[int, int]:
    """Add the vertices on the line above a row, left to right; returns the number of vertices and of nodes.

    Only where a run begins, above or below the line, can an upright edge meet the line; between such columns it is
    straight. ``open_`` holds for each column the vertex from which an edge hangs down to the line, or ``-1 - node`` if it
    hangs from the band before; ``west`` is the vertex from which an edge of the line comes.
    """
    i, j, west = 0, 0, -1
    nw_class = nw = sw_class = sw = np.int32(0)
    while i < len(above) or j < len(runs):
        col = min(above[i, 0] if i < len(above) else runs[j, 0], runs[j, 0] if j < len(runs) else above[i, 0])
        ne_class, ne, se_class, se = nw_class, nw, sw_class, sw
        if i < len(above) and above[i, 0] == col:
            ne_class, ne = above[i, 1], above[i, 2]
            i += 1
        if j < len(runs) and runs[j, 0] == col:
            se_class, se = runs[j, 1], runs[j, 2]
            j += 1
        goes = (nw_class != ne_class, ne_class != se_class, se_class != sw_class, sw_class != nw_class)
        if goes[NORTH] and open_[col] < 0:
            count, west = _add_node(vertices, count, open_, west, row, col, goes, (nw, ne, se, sw), 4 * (-1 - open_[col]))
        elif goes[NORTH] + goes[EAST] + goes[SOUTH] + goes[WEST] > 2:
            count, west = _add_node(vertices, count, open_, west, row, col, goes, (nw, ne, se, sw), 4 * nodes)
            nodes += 1
        elif goes[NORTH] != goes[SOUTH]:
            count, west = _add_turn(vertices, count, open_, west, row, col, goes, (nw, ne, se, sw))
        nw_class, nw, sw_class, sw = ne_class, ne, se_class, se
    return count, nodes


@Kernel
def _scan(
    classes: NDArray[np.uint8],
    confidence: NDArray[np.uint8],
    top: int,
    above: NDArray[np.int32],
    forest: NDArray[np.int32],
    tallies: NDArray[np.int64],
    labels: int,
) -> tuple[NDArray[np.int32], int, int, NDArray[np.int32], NDArray[np.int32], NDArray[np.int64], int]:
    """Scan a band: label its runs, find its vertices, and let its open edges hang from nodes on its lower border.

    Args:
        classes: (H, W).
        confidence: (H, W), or (0, 0) if it is not known.
        top: row of the band in the raster.
        above: (N, 3) runs of the row above: first column, class, label. Edges that hang down from them end in the nodes
            0, 1, ... from left to right.
        forest: (L, 1) union-find forest of labels; the parent is never the larger label.
        tallies: (L, 6) what is counted for each label.
        labels: number of labels in use.

    Returns:
        Vertices (V, 6); the number of nodes, and of those among them on the lower border, which come last; the runs of
        the last row; forest, tallies and the number of labels in use.
    """
    height, width = classes.shape
    open_ = np.empty(width + 1, np.int32)
    for run in range(len(above)):
        open_[above[run, 0]] = -1 - run
    nodes, count = len(above), 0
    spare, nothing = np.empty((width + 1, 3), np.int32), np.empty(0, np.uint8)
    vertices = np.empty((4096, 6), np.int32)
    for line in range(height):
        found = _find_runs(classes[line], spare)
        runs = spare[:found].copy()
        if count + 4 * (len(above) + 2 * found) > len(vertices):
            vertices = longer(vertices, count + 4 * (len(above) + 2 * found))
        if labels + found > len(forest):
            forest, tallies = longer(forest, labels + found), longer(tallies, labels + found)
        labels = _label_runs(above, runs, forest, tallies, labels)
        _tally_runs(top + line, runs, confidence[line] if len(confidence) else nothing, tallies)
        count, nodes = _trace_row(top + line, above, runs, open_, vertices, count, nodes)
        above = runs
    for run in range(len(above)):
        before, col = above[run - 1, 2] if run else np.int32(0), above[run, 0]
        vertices[open_[col], _VERTICAL] = count
        vertices[count, _VERTICAL] = open_[col]
        vertices[count, _HORIZONTAL] = -1 - (4 * (nodes + run) + NORTH)
        count = _vertex(vertices, count, top + height, col, before, above[run, 2])
    return vertices[:count], nodes + len(above), len(above), above, forest, tallies, labels


@inlined
def _follow(vertices: NDArray[np.int32], begin: int, seen: NDArray[np.bool_], points: NDArray[np.int32], count: int) -> tuple[int, int]:
    """Write the points of the arc that leaves a vertex; returns the number of points written and the code of its end."""
    points[count, 0], points[count, 1] = vertices[begin, _COL], vertices[begin, _ROW]
    seen[begin] = True
    count += 1
    along = _VERTICAL if vertices[begin, _HORIZONTAL] < 0 else _HORIZONTAL
    at = vertices[begin, along]
    while True:
        points[count, 0], points[count, 1] = vertices[at, _COL], vertices[at, _ROW]
        seen[at] = True
        count += 1
        along = _VERTICAL + _HORIZONTAL - along
        if at == begin or vertices[at, along] < 0:
            return count, -1 if at == begin else -1 - vertices[at, along]
        at = vertices[at, along]


@Kernel
def _chain(
    vertices: NDArray[np.int32],
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """String the vertices of a band to arcs, first those between nodes, then the closed ones.

    Returns:
        Points (P, 2), number of points (A,), labels left and right (A, 2), and codes of both ends (A, 2), all of the arcs.
    """
    ends = 0
    for vertex in range(len(vertices)):
        ends += vertices[vertex, _VERTICAL] < 0 or vertices[vertex, _HORIZONTAL] < 0
    most = ends // 2 + (len(vertices) - ends) // 4
    points, lengths = np.empty((len(vertices) + most, 2), np.int32), np.empty(most, np.int64)
    sides, codes = np.empty((most, 2), np.int32), np.empty((most, 2), np.int32)
    seen = np.zeros(len(vertices), np.bool_)
    arcs = count = 0
    for closed in (False, True):
        for vertex in range(len(vertices)):
            start = min(vertices[vertex, _VERTICAL], vertices[vertex, _HORIZONTAL])
            if seen[vertex] or (start >= 0 and not closed):
                continue
            after, end = _follow(vertices, vertex, seen, points, count)
            lengths[arcs] = after - count
            sides[arcs, 0], sides[arcs, 1] = vertices[vertex, _LEFT], vertices[vertex, _RIGHT]
            codes[arcs, 0], codes[arcs, 1] = -1 if closed else -1 - start, end
            count = after
            arcs += 1
    return points[:count].copy(), lengths[:arcs].copy(), sides[:arcs].copy(), codes[:arcs].copy()


@Kernel
def _number_faces(forest: NDArray[np.int32], tallies: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number the trees of the forest by their smallest label, and add up their tallies.

    Returns:
        The face of each label (L,), -1 for label 0, and the tallies of the faces (F, 6).
    """
    faces, count = np.empty(len(forest), np.int32), 0
    faces[0] = -1
    for label in range(1, len(forest)):
        if forest[label, 0] == label:
            faces[label] = count
            for column in range(tallies.shape[1]):
                tallies[count, column] = tallies[label, column]
            count += 1
        else:
            faces[label] = faces[forest[label, 0]]
            for column in range(_PIXELS, tallies.shape[1]):
                tallies[faces[label], column] += tallies[label, column]
    return faces, tallies[:count]
