"""Join arcs to rings and rings to faces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from geoseg.polygons.arcs import Arcs, Block, longer, trace
from geoseg.polygons.kernel import Kernel, inlined

_FIRST, _FACE, _POINTS, _CORNER = range(4)  # columns of the table of rings


@dataclass(frozen=True, eq=False)
class Faces:
    """The 4-connected faces of a class raster as polygons on pixel corners; neighbours share their edges exactly.

    Faces are in the order of their first pixel, row by row. Every polygon is valid: rings touch in single corners at
    most, and no ring touches itself. The first ring of a face is its shell, the others are its holes, from top to bottom;
    a ring begins at its topmost, leftmost corner, ends there, and has the face on its left, seen with row 0 on top.
    Corners on a straight line are dropped, except where a neighbour has a corner.

    Attributes:
        class_id: (F,) uint8, never 0.
        pixels: (F,) int64, number of pixels.
        centroid: (F, 2) float64, mean column and row of the pixel centres; that of the first pixel is (0.5, 0.5).
        confidence: (F,) float32, mean confidence, 0 to 1; NaN where it is not known.
        face_offsets: (F + 1,) int64, the rings of face ``f`` are ``face_offsets[f]`` to ``face_offsets[f + 1] - 1``.
        ring_offsets: (R + 1,) int64, ring ``r`` is ``vertices[ring_offsets[r]:ring_offsets[r + 1]]``.
        vertices: (V, 2) int32, column and row of pixel corners.
    """

    class_id: NDArray[np.uint8]
    pixels: NDArray[np.int64]
    centroid: NDArray[np.float64]
    confidence: NDArray[np.float32]
    face_offsets: NDArray[np.int64]
    ring_offsets: NDArray[np.int64]
    vertices: NDArray[np.int32]

    def __len__(self) -> int:
        """Number of faces."""
        return len(self.class_id)

    def count(self) -> NDArray[np.int64]:
        """Number of faces of each class id, (256,)."""
        return np.bincount(self.class_id, minlength=256)

    def polygons(self, transform: Affine | None = None) -> NDArray[np.object_]:
        """Shapely polygons (F,), in pixels or, with a transform, on the ground."""
        points = on_map(transform or Affine.identity(), self.vertices.astype(np.float64))
        polygons: NDArray[np.object_] = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON, points, (self.ring_offsets, self.face_offsets)
        )
        return polygons


def on_map(transform: Affine, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map coordinates (..., 2), x before y, of points (..., 2) given as column and row."""
    a, b, c, d, e, f, *_ = transform
    col, row = points[..., 0], points[..., 1]
    return np.stack([a * col + b * row + c, d * col + e * row + f], axis=-1)


def polygonize(blocks: Iterable[Block], shape: tuple[int, int]) -> Faces:
    """Turn a class raster into polygons, the same whatever the layout of the blocks.

    Args:
        blocks: windows, classes (H, W) uint8, and confidence (H, W) uint8 or None; they cover each pixel once, in any
            order; rows of blocks from top to bottom are best. Class 0 is outside, confidence 255 unknown.
        shape: height and width of the raster.

    Raises:
        CoverageError: if the blocks do not cover each pixel once.
    """
    return assemble(trace(blocks, shape))


def assemble(arcs: Arcs) -> Faces:
    """Walk around each face along its arcs."""
    slots = np.full(4 * arcs.nodes, -1, np.int32)
    halves = np.arange(0, 2 * len(arcs.left), 2, dtype=np.int32)
    for ends, leaving in ((arcs.start, halves), (arcs.end, halves + 1)):
        slots[ends[ends >= 0]] = leaving[ends >= 0]
    network = (slots, arcs.start, arcs.end, arcs.left, arcs.right, arcs.offsets, arcs.points)
    rings = _find_rings(*network)
    rings = rings[np.lexsort((rings[:, _CORNER], rings[:, _FACE]))]
    ring_offsets = np.concatenate([[0], np.cumsum(rings[:, _POINTS] + 1)])
    return Faces(
        class_id=arcs.class_id,
        pixels=arcs.pixels,
        centroid=arcs.centroid,
        confidence=arcs.confidence,
        face_offsets=np.searchsorted(rings[:, _FACE], np.arange(len(arcs.class_id) + 1)),
        ring_offsets=ring_offsets,
        vertices=_draw_rings(rings, ring_offsets, *network),
    )


@inlined
def _after(
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
    points: NDArray[np.int32],
) -> NDArray[np.int64]:
    """Find the rings of all faces.

    ``slots`` (4 N,) holds the half arc that leaves each node in each direction, -1 where there is none; the rest is as in
    `Arcs`.

    Returns:
        (R, 4): a half arc of the ring, its face, its number of corners, and its topmost, leftmost corner as
        ``row << 32 | column``.
    """
    rings, count = np.empty((1024, 4), np.int64), 0
    seen = np.zeros(2 * len(left), np.bool_)
    for first in range(2 * len(left)):
        face = left[first >> 1] if first & 1 == 0 else right[first >> 1]
        if seen[first] or face < 0:
            continue
        corners, corner, half = 0, np.int64(2**62), first
        while not seen[half]:
            seen[half] = True
            begin, stop = offsets[half >> 1], offsets[(half >> 1) + 1]
            for point in range(begin, stop):
                corner = min(corner, np.int64(points[point, 1]) << 32 | np.int64(points[point, 0]))
            half, kept = _after(half, slots, start, end, left, right)
            corners += stop - begin - 2 + kept
        if count == len(rings):
            rings = longer(rings, 2 * count)
        rings[count, _FIRST], rings[count, _FACE], rings[count, _POINTS], rings[count, _CORNER] = first, face, corners, corner
        count += 1
    return rings[:count]


@Kernel
def _draw_rings(
    rings: NDArray[np.int64],
    ring_offsets: NDArray[np.int64],
    slots: NDArray[np.int32],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    left: NDArray[np.int32],
    right: NDArray[np.int32],
    offsets: NDArray[np.int64],
    points: NDArray[np.int32],
) -> NDArray[np.int32]:
    """Write the corners of the rings, each from its topmost, leftmost corner and back to it: (V, 2) column and row."""
    vertices = np.empty((ring_offsets[-1], 2), np.int32)
    spare = np.empty((rings[:, _POINTS].max() if len(rings) else 0, 2), np.int32)
    for ring in range(len(rings)):
        half, count, top = rings[ring, _FIRST], 0, 0
        while True:
            after, kept = _after(half, slots, start, end, left, right)
            begin, stop = offsets[half >> 1], offsets[(half >> 1) + 1]
            for step in range(1, stop - begin - (not kept)):
                point = begin + step if half & 1 == 0 else stop - 1 - step
                spare[count, 0], spare[count, 1] = points[point, 0], points[point, 1]
                if np.int64(points[point, 1]) << 32 | np.int64(points[point, 0]) == rings[ring, _CORNER]:
                    top = count
                count += 1
            half = after
            if half == rings[ring, _FIRST]:
                break
        for corner in range(count + 1):
            at, source = ring_offsets[ring] + corner, (top + corner) % count
            vertices[at, 0], vertices[at, 1] = spare[source, 0], spare[source, 1]
    return vertices
