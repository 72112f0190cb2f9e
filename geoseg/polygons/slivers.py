"""Small faces and small holes go to a neighbour."""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from geoseg.polygons.arcs import Arcs, longer
from geoseg.polygons.join import join
from geoseg.polygons.kernel import Kernel, Number, inlined


def merge_small(arcs: Arcs, least: NDArray[np.float64], hole: float) -> Arcs:
    """Merge faces that are too small into a neighbour, and fill small holes; no ground is lost, and none is gained.

    First holes: what a face encloses and is smaller than ``hole`` in all becomes part of it, unless it holds pixels without data.
    Then slivers, the smallest first, of equals the one that begins first: each becomes part of the neighbour with which it shares
    the longest boundary, of equals the larger one, and takes its class. Faces of one class that thereby come to share a
    boundary become one. A face without a neighbour stays as it is.

    Args:
        arcs: in canonical form, see `join`.
        least: (256,) size in pixels from which a face of each class is large enough.
        hole: size in pixels from which a hole is large enough.

    Returns:
        Arcs in canonical form. The confidence of a face is the mean of its parts by pixels.
    """
    pairs = np.stack([arcs.left, arcs.right], axis=1).astype(np.int64)
    borders = _lengths(arcs.points, arcs.offsets)
    heads = _adjacency(pairs, len(arcs.class_id))
    holes = _small_holes(arcs, hole) if hole > 0 else np.zeros((0, 3), np.int64)
    owner = _merge(pairs, borders, *heads, arcs.class_id, arcs.pixels, least, holes)
    return _regrouped(arcs, owner)


def _small_holes(arcs: Arcs, hole: float) -> NDArray[np.int64]:
    """Holes smaller than asked: the face around, the first face inside, and the size in pixels, (H, 3), from the smallest on."""
    from geoseg.polygons.coverage import find_rings

    rings, _, areas = find_rings(arcs)
    small = (areas < 0) & (-areas < hole)
    first, around = rings[small, 0], rings[small, 1]
    inside = np.where(first & 1 == 0, arcs.right[first >> 1], arcs.left[first >> 1])
    found = np.stack([around, inside, np.rint(-areas[small]).astype(np.int64)], axis=1)
    return found[np.lexsort((inside, around, found[:, 2]))]


def _regrouped(arcs: Arcs, owner: NDArray[np.int64]) -> Arcs:
    """Join the faces that have one owner; the class is the owner's, the order that of the first pixels."""
    first = np.full(len(owner), len(owner), np.int64)
    np.minimum.at(first, owner, np.arange(len(owner)))
    owners = np.flatnonzero(first < len(owner))
    owners = owners[np.argsort(first[owners])]
    number = np.full(len(owner), -1, np.int64)
    number[owners] = np.arange(len(owners))
    face = number[owner]
    pixels = np.bincount(face, arcs.pixels, len(owners))
    known = np.where(np.isfinite(arcs.confidence), arcs.pixels, 0)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(face, np.nan_to_num(arcs.confidence) * known, len(owners)) / np.bincount(face, known, len(owners))
    centroid = np.stack([np.bincount(face, arcs.pixels * axis, len(owners)) for axis in arcs.centroid.T], axis=1) / pixels[:, None]
    left, right = (np.where(side < 0, -1, face[side]).astype(np.int32) for side in (arcs.left, arcs.right))
    return join(
        replace(
            arcs,
            left=left,
            right=right,
            class_id=arcs.class_id[owners],
            pixels=pixels.astype(np.int64),
            centroid=centroid,
            confidence=confidence.astype(np.float32),
        )
    )


@Kernel
def _lengths(points: NDArray[np.int32], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Length of each arc in pixel edges (A,)."""
    lengths = np.zeros(len(offsets) - 1, np.int64)
    for arc in range(len(lengths)):
        for at in range(offsets[arc] + 1, offsets[arc + 1]):
            lengths[arc] += abs(points[at, 0] - points[at - 1, 0]) + abs(points[at, 1] - points[at - 1, 1])
    return lengths


@Kernel
def _adjacency(pairs: NDArray[np.int64], faces: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """For each face a linked list of its arcs' sides: first (F,), last (F,), and the next of each side (2 A,); -1 at the end."""
    first, last, after = np.full(faces, -1, np.int64), np.full(faces, -1, np.int64), np.full(2 * len(pairs), -1, np.int64)
    for arc in range(len(pairs)):
        for side in range(2):
            face = pairs[arc, side]
            if face < 0:
                continue
            if first[face] < 0:
                first[face] = 2 * arc + side
            else:
                after[last[face]] = 2 * arc + side
            last[face] = 2 * arc + side
    return first, last, after


@inlined
def _owner(owner: NDArray[np.int64], face: Number) -> Number:
    while owner[face] != face:
        owner[face] = owner[owner[face]]
        face = owner[face]
    return face


@inlined
def _absorb(
    owner: NDArray[np.int64],
    size: NDArray[np.int64],
    begin: NDArray[np.int64],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    after: NDArray[np.int64],
    large: Number,
    small: Number,
) -> None:
    """Make one face part of another."""
    owner[small] = large
    size[large] += size[small]
    begin[large] = min(begin[large], begin[small])
    if first[small] >= 0:
        if first[large] < 0:
            first[large] = first[small]
        else:
            after[last[large]] = first[small]
        last[large] = last[small]


@inlined
def _neighbours(
    face: Number,
    pairs: NDArray[np.int64],
    borders: NDArray[np.int64],
    owner: NDArray[np.int64],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    after: NDArray[np.int64],
    shared: NDArray[np.int64],
    found: NDArray[np.int64],
) -> tuple[int, bool, NDArray[np.int64]]:
    """Write the faces beside a face to ``found``, and to ``shared`` how long the boundaries are; arcs inside the face leave its list.

    Returns:
        How many there are, whether one side is outside, and ``found``, which may have grown.
    """
    count, outside = 0, False
    side, before = first[face], np.int64(-1)
    while side >= 0:
        following = after[side]
        other = pairs[side >> 1, 1 - (side & 1)]
        if other < 0:
            outside = True
        else:
            other = _owner(owner, other)
        if other == face:
            if before < 0:
                first[face] = following
            else:
                after[before] = following
            if following < 0:
                last[face] = before
        else:
            before = side
            if other >= 0:
                if shared[other] == 0:
                    if count == len(found):
                        found = longer(found.reshape(-1, 1), 2 * count).reshape(-1)
                    found[count] = other
                    count += 1
                shared[other] += borders[side >> 1]
        side = following
    return count, outside, found


@Kernel
def _merge(
    pairs: NDArray[np.int64],
    borders: NDArray[np.int64],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    after: NDArray[np.int64],
    class_id: NDArray[np.uint8],
    pixels: NDArray[np.int64],
    least: NDArray[np.float64],
    holes: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Decide which face each one becomes a part of (F,)."""
    faces = len(class_id)
    owner, size, begin = np.arange(faces), pixels.copy(), np.arange(faces)
    shared, found = np.zeros(faces, np.int64), np.empty(1024, np.int64)
    marked = np.zeros(faces, np.bool_)
    for row in range(len(holes)):
        around, closed = _owner(owner, holes[row, 0]), holes[row, 1] >= 0
        inside = [_owner(owner, holes[row, 1])] if closed else [around]
        marked[inside[0]], done = True, 0
        while done < len(inside) and closed:
            count, outside, found = _neighbours(inside[done], pairs, borders, owner, first, last, after, shared, found)
            for index in range(count):
                other = found[index]
                shared[other] = 0
                if other != around and not marked[other]:
                    marked[other] = True
                    inside.append(other)
            closed = not outside
            done += 1
        for face in inside:
            marked[face] = False
            if closed:
                _absorb(owner, size, begin, first, last, after, around, face)
    queue = [
        (size[face], begin[face], np.int64(face)) for face in range(faces) if owner[face] == face and size[face] < least[class_id[face]]
    ]
    heapq.heapify(queue)
    while len(queue):
        known, began, face = heapq.heappop(queue)
        if owner[face] != face or size[face] >= least[class_id[face]]:
            continue
        if size[face] != known or begin[face] != began:
            heapq.heappush(queue, (size[face], begin[face], face))
            continue
        count, _, found = _neighbours(face, pairs, borders, owner, first, last, after, shared, found)
        best = np.int64(-1)
        for index in range(count):
            other = found[index]
            if best < 0 or (shared[other], size[other], -begin[other]) > (shared[best], size[best], -begin[best]):
                best = other
        for index in range(count):
            shared[found[index]] = 0
        if best < 0:
            continue
        _absorb(owner, size, begin, first, last, after, best, face)
        for index in range(count):
            other = found[index]
            if other != best and class_id[other] == class_id[best]:
                _absorb(owner, size, begin, first, last, after, best, other)
    for face in range(faces):
        owner[face] = _owner(owner, face)
    return owner
