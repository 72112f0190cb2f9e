"""Faces as well-known binary."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from geoseg.polygons.coverage import Corner, Faces
from geoseg.polygons.kernel import Kernel, Number, inlined

_HEADER = 1 + 4 + 4  # of a geometry: byte order, type, number of parts
_COUNT = 4
_POINT = 16
_POLYGON, _MULTIPOLYGON = 3, 6


def encode(faces: Faces, chosen: NDArray[np.int64], transform: Affine) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Some faces as ISO WKB of type MultiPolygon; shells run counter-clockwise on the map.

    Args:
        faces: all faces.
        chosen: (N,) which of them.
        transform: from pixel corners (column, row) to map coordinates.

    Returns:
        The bytes of all geometries one after the other, and (N + 1,) where each begins.
    """
    offsets = np.concatenate([[0], np.cumsum(sizes(faces)[chosen])])
    mirrored = transform.determinant > 0
    affine = np.array(transform[:6], np.float64)
    order = int(sys.byteorder == "little")
    vertices: Any = faces.vertices
    parts = (faces.part_offsets, faces.polygon_offsets, faces.ring_offsets)
    return _encode(chosen, offsets, *parts, vertices, affine, mirrored, order), offsets


def sizes(faces: Faces) -> NDArray[np.int64]:
    """Bytes (F,) that each face takes."""
    parts, rings = np.diff(faces.part_offsets), np.diff(faces.face_offsets)
    points = np.diff(faces.ring_offsets[faces.face_offsets])
    total: NDArray[np.int64] = _HEADER * (1 + parts) + _COUNT * rings + _POINT * points
    return total


@inlined
def _put(buffer: NDArray[np.uint8], at: int, value: NDArray[np.uint8]) -> int:
    for byte in range(len(value)):
        buffer[at + byte] = value[byte]
    return at + len(value)


@inlined
def _put_header(
    buffer: NDArray[np.uint8], at: int, order: int, kind: int, parts: Number, number: NDArray[np.uint32], number_bytes: NDArray[np.uint8]
) -> int:
    buffer[at] = order
    number[0] = kind
    at = _put(buffer, at + 1, number_bytes)
    number[0] = parts
    return _put(buffer, at, number_bytes)


@Kernel
def _encode(
    chosen: NDArray[np.int64],
    offsets: NDArray[np.int64],
    part_offsets: NDArray[np.int64],
    polygon_offsets: NDArray[np.int64],
    ring_offsets: NDArray[np.int64],
    vertices: NDArray[Corner],
    affine: NDArray[np.float64],
    mirrored: bool,
    order: int,
) -> NDArray[np.uint8]:
    buffer = np.empty(offsets[-1], np.uint8)
    number, point = np.empty(1, np.uint32), np.empty(2, np.float64)
    number_bytes, point_bytes = number.view(np.uint8), point.view(np.uint8)
    for face in range(len(chosen)):
        first, stop = part_offsets[chosen[face]], part_offsets[chosen[face] + 1]
        at = _put_header(buffer, offsets[face], order, _MULTIPOLYGON, stop - first, number, number_bytes)
        for polygon in range(first, stop):
            shell, after = polygon_offsets[polygon], polygon_offsets[polygon + 1]
            at = _put_header(buffer, at, order, _POLYGON, after - shell, number, number_bytes)
            for ring in range(shell, after):
                begin, end = ring_offsets[ring], ring_offsets[ring + 1]
                number[0] = end - begin
                at = _put(buffer, at, number_bytes)
                for step in range(end - begin):
                    corner = end - 1 - step if mirrored else begin + step
                    col, row = vertices[corner, 0], vertices[corner, 1]
                    point[0] = affine[0] * col + affine[1] * row + affine[2]
                    point[1] = affine[3] * col + affine[4] * row + affine[5]
                    at = _put(buffer, at, point_bytes)
    return buffer
