"""Join arcs to rings and rings to faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from geoseg.polygons.arcs import NORTH, SOUTH, Arcs, longer
from geoseg.polygons.kernel import Kernel, inlined

Corner = TypeVar("Corner", np.int32, np.float64)

_FIRST, _FACE, _POINTS = range(3)  # columns of the table of rings


@dataclass(frozen=True, eq=False)
class Faces:
    """The faces of a class raster as polygons; neighbours share their edges exactly.

    A face is one connected region of a class. 4-connected faces are one polygon each, 8-connected ones may be several that
    touch in corners. Faces are in the order of their first pixel, row by row. Every polygon is valid: rings touch in single
    corners at most, and no ring touches itself. The first ring of a polygon is its shell, the others are its holes, from top to
    bottom; a ring begins at its topmost, leftmost corner, ends there, and has the face on its left, seen with row 0 on top.
    Corners on a straight pixel edge are dropped, except where a neighbour has a corner.

    Attributes:
        class_id: (F,) uint8, never 0.
        pixels: (F,) int64, number of pixels.
        areas_px: (F,) float64, area in pixels: the number of pixels as long as no boundary was moved.
        centroid: (F, 2) float64, mean column and row of the pixel centres; that of the first pixel is (0.5, 0.5).
        confidence: (F,) float32, mean confidence, 0 to 1; NaN where it is not known.
        part_offsets: (F + 1,) int64, the polygons of face ``f`` are ``part_offsets[f]`` to ``part_offsets[f + 1] - 1``.
        polygon_offsets: (G + 1,) int64, the rings of polygon ``g`` are ``polygon_offsets[g]`` to ``polygon_offsets[g + 1] - 1``.
        ring_offsets: (R + 1,) int64, ring ``r`` is ``vertices[ring_offsets[r]:ring_offsets[r + 1]]``.
        vertices: (V, 2) int32, column and row of pixel corners; float64 where boundaries were moved.
    """

    class_id: NDArray[np.uint8]
    pixels: NDArray[np.int64]
    areas_px: NDArray[np.float64]
    centroid: NDArray[np.float64]
    confidence: NDArray[np.float32]
    part_offsets: NDArray[np.int64]
    polygon_offsets: NDArray[np.int64]
    ring_offsets: NDArray[np.int64]
    vertices: NDArray[np.int32] | NDArray[np.float64]

    def __len__(self) -> int:
        """Number of faces."""
        return len(self.class_id)

    @property
    def face_offsets(self) -> NDArray[np.int64]:
        """(F + 1,) int64, the rings of face ``f``, of all its polygons, are ``face_offsets[f]`` to ``face_offsets[f + 1] - 1``."""
        offsets: NDArray[np.int64] = self.polygon_offsets[self.part_offsets]
        return offsets

    def count(self) -> NDArray[np.int64]:
        """Number of faces of each class id, (256,)."""
        return np.bincount(self.class_id, minlength=256)

    def polygons(self, transform: Affine | None = None) -> NDArray[np.object_]:
        """Shapely polygons (F,), multipolygons if a face has several, in pixels or, with a transform, on the ground."""
        points = on_map(transform or Affine.identity(), self.vertices.astype(np.float64))
        single = len(self.polygon_offsets) == len(self.part_offsets)
        kind, offsets = (
            (shapely.GeometryType.POLYGON, (self.ring_offsets, self.polygon_offsets))
            if single
            else (shapely.GeometryType.MULTIPOLYGON, (self.ring_offsets, self.polygon_offsets, self.part_offsets))
        )
        polygons: NDArray[np.object_] = shapely.from_ragged_array(kind, points, offsets)
        return polygons


def on_map(transform: Affine, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map coordinates (..., 2), x before y, of points (..., 2) given as column and row."""
    a, b, c, d, e, f, *_ = transform
    col, row = points[..., 0], points[..., 1]
    return np.stack([a * col + b * row + c, d * col + e * row + f], axis=-1)


def assemble(arcs: Arcs, connectivity: Literal[4, 8] = 4) -> Faces:
    """Walk around each face along its arcs.

    Args:
        arcs: of the whole raster.
        connectivity: 4, or 8 to make one face of those of a class that touch in a corner.
    """
    rings, corners, areas = find_rings(arcs)
    face = _touching(arcs) if connectivity == 8 else np.arange(len(arcs.class_id))
    order = np.lexsort((corners[:, 0], corners[:, 1], areas < 0, rings[:, _FACE], face[rings[:, _FACE]]))
    rings, corners, areas = rings[order], corners[order], areas[order]
    ring_offsets = np.concatenate([[0], np.cumsum(rings[:, _POINTS] + 1)])
    polygons = np.argsort(face, kind="stable")
    count = int(face.max(initial=-1)) + 1
    return Faces(
        **_gathered(arcs, face, count),
        areas_px=np.bincount(face[rings[:, _FACE]], areas, count).astype(np.float64, copy=False),
        part_offsets=np.searchsorted(face[polygons], np.arange(count + 1)),
        polygon_offsets=np.concatenate([[0], np.cumsum(np.bincount(rings[:, _FACE], minlength=len(face))[polygons])]),
        ring_offsets=ring_offsets,
        vertices=_draw_rings(rings, corners, ring_offsets, *network(arcs)),
    )


def find_rings(arcs: Arcs) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Find the rings of all faces.

    Returns:
        (R, 3): a half arc of the ring (``2 a`` along arc ``a``, ``2 a + 1`` against it), its face, its number of corners;
        (R, 2): column and row of its topmost, leftmost corner; (R,): its area in pixels, negative for a hole.
    """
    return _find_rings(*network(arcs))


def network(arcs: Arcs) -> tuple[NDArray[Any], ...]:
    """The half arc that leaves each node in each direction, (4 N,), -1 where there is none; and the rest as in `Arcs`."""
    slots = np.full(4 * arcs.nodes, -1, np.int32)
    halves = np.arange(0, 2 * len(arcs.left), 2, dtype=np.int32)
    for ends, leaving in ((arcs.start, halves), (arcs.end, halves + 1)):
        slots[ends[ends >= 0]] = leaving[ends >= 0]
    return slots, arcs.start, arcs.end, arcs.left, arcs.right, arcs.offsets, arcs.points


def _touching(arcs: Arcs) -> NDArray[np.int64]:
    """For each face the number of its 8-connected region, in the order of their first pixels."""
    slots, *_ = network(arcs)
    around = slots.reshape(-1, 4)
    around = around[(around >= 0).all(axis=1)]
    north, south = around[:, NORTH], around[:, SOUTH]

    def beside(half: NDArray[np.int32], left: bool) -> NDArray[np.int32]:
        side: NDArray[np.int32] = np.where((half & 1 == 0) == left, arcs.left[half >> 1], arcs.right[half >> 1])
        return side

    pairs = np.stack(
        [np.concatenate([beside(north, True), beside(north, False)]), np.concatenate([beside(south, True), beside(south, False)])]
    )
    pairs = pairs[:, (pairs >= 0).all(axis=0)]
    pairs = pairs[:, arcs.class_id[pairs[0]] == arcs.class_id[pairs[1]]]
    _, region = np.unique(_united(pairs.astype(np.int64), len(arcs.class_id)), return_inverse=True)
    return np.asarray(region, np.int64)


@Kernel
def _united(pairs: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The smallest number of those that pairs (2, N) connect with each number below ``count``."""
    forest = np.arange(count)
    for pair in range(pairs.shape[1]):
        one, two = pairs[0, pair], pairs[1, pair]
        while forest[one] != one:
            one = forest[one]
        while forest[two] != two:
            two = forest[two]
        low, high = min(one, two), max(one, two)
        forest[high] = forest[pairs[0, pair]] = forest[pairs[1, pair]] = low
    for number in range(count):
        forest[number] = forest[forest[number]]
    return forest


def _gathered(arcs: Arcs, face: NDArray[np.int64], count: int) -> dict[str, NDArray[Any]]:
    """What is known of the 4-connected faces, for the faces they belong to."""
    if count == len(face):
        return {"class_id": arcs.class_id, "pixels": arcs.pixels, "centroid": arcs.centroid, "confidence": arcs.confidence}
    class_id = np.empty(count, np.uint8)
    class_id[face] = arcs.class_id
    pixels = np.bincount(face, arcs.pixels, count)
    known = arcs.pixels * np.isfinite(arcs.confidence)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(face, known * np.nan_to_num(arcs.confidence), count) / np.bincount(face, known, count)
    centroid = np.stack([np.bincount(face, arcs.pixels * axis, count) / pixels for axis in arcs.centroid.T], axis=1)
    return {"class_id": class_id, "pixels": pixels.astype(np.int64), "centroid": centroid, "confidence": confidence.astype(np.float32)}


@inlined
def after_half(
    half: int, slots: NDArray[np.int32], start: NDArray[np.int64], end: NDArray[np.int64], left: NDArray[np.int32], right: NDArray[np.int32]
) -> tuple[int, bool]:
    """The half arc that follows on the boundary of the face on the left, and whether the corner between them is kept.

    Half arc ``2 a`` runs along arc ``a``, half arc ``2 a + 1`` against it. The boundary turns left where it can, around
    the face's own pixel. Where the face also owns the pixel diagonally across, it turns right: so the boundary falls
    apart at this corner into two rings that touch, instead of one ring that touches itself.
    """
    arc = half >> 1
    at = end[arc] if half & 1 == 0 else start[arc]
    if at < 0:
        return half, True
    node, back = at & ~3, at & 3
    to_left, ahead, to_right = slots[node | (back + 1) & 3], slots[node | (back + 2) & 3], slots[node | (back + 3) & 3]
    if to_left < 0:
        return (ahead, to_right >= 0) if ahead >= 0 else (to_right, True)
    if to_right >= 0:
        face = left[arc] if half & 1 == 0 else right[arc]
        if face == (left[to_right >> 1] if to_right & 1 == 0 else right[to_right >> 1]):
            return to_right, True
    return to_left, True


@Kernel
def _find_rings(
    slots: NDArray[np.int32],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    left: NDArray[np.int32],
    right: NDArray[np.int32],
    offsets: NDArray[np.int64],
    points: NDArray[Corner],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """See `find_rings`."""
    rings, corners, count = np.empty((1024, 3), np.int64), np.empty((1024, 3), np.float64), 0
    seen = np.zeros(2 * len(left), np.bool_)
    for first in range(2 * len(left)):
        face = left[first >> 1] if first & 1 == 0 else right[first >> 1]
        if seen[first] or face < 0:
            continue
        number, col, row, area, half = 0, np.inf, np.inf, 0.0, first
        while not seen[half]:
            seen[half] = True
            begin, stop = offsets[half >> 1], offsets[(half >> 1) + 1]
            swept = 0.0
            for point in range(begin, stop):
                if points[point, 1] < row or (points[point, 1] == row and points[point, 0] < col):
                    col, row = float(points[point, 0]), float(points[point, 1])
                if point > begin:
                    swept += (float(points[point - 1, 0]) + float(points[point, 0])) * (
                        float(points[point - 1, 1]) - float(points[point, 1])
                    )
            area += swept if half & 1 == 0 else -swept
            half, kept = after_half(half, slots, start, end, left, right)
            number += stop - begin - 2 + kept
        if count == len(rings):
            rings, corners = longer(rings, 2 * count), longer(corners, 2 * count)
        rings[count, _FIRST], rings[count, _FACE], rings[count, _POINTS] = first, face, number
        corners[count, 0], corners[count, 1], corners[count, 2] = col, row, area / 2
        count += 1
    return rings[:count], corners[:count, :2], corners[:count, 2]


@Kernel
def _draw_rings(
    rings: NDArray[np.int64],
    corners: NDArray[np.float64],
    ring_offsets: NDArray[np.int64],
    slots: NDArray[np.int32],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    left: NDArray[np.int32],
    right: NDArray[np.int32],
    offsets: NDArray[np.int64],
    points: NDArray[Corner],
) -> NDArray[Corner]:
    """Write the corners of the rings, each from its topmost, leftmost corner and back to it: (V, 2) column and row."""
    vertices = np.empty((ring_offsets[-1], 2), points.dtype)
    spare = np.empty((rings[:, _POINTS].max() if len(rings) else 0, 2), points.dtype)
    for ring in range(len(rings)):
        half, count, top = rings[ring, _FIRST], 0, 0
        while True:
            after, kept = after_half(half, slots, start, end, left, right)
            begin, stop = offsets[half >> 1], offsets[(half >> 1) + 1]
            for step in range(1, stop - begin - (not kept)):
                point = begin + step if half & 1 == 0 else stop - 1 - step
                spare[count, 0], spare[count, 1] = points[point, 0], points[point, 1]
                if points[point, 0] == corners[ring, 0] and points[point, 1] == corners[ring, 1]:
                    top = count
                count += 1
            half = after
            if half == rings[ring, _FIRST]:
                break
        for corner in range(count + 1):
            at, source = ring_offsets[ring] + corner, (top + corner) % count
            vertices[at, 0], vertices[at, 1] = spare[source, 0], spare[source, 1]
    return vertices
