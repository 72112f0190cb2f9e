"""Give buildings straight walls and right angles, and let their neighbours follow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.polygons.arcs import Arcs, longer
from geoseg.polygons.coverage import after_half, find_rings, network
from geoseg.polygons.footprints import (
    LEAST_IOU,
    LEAST_TOLERANCE_PX,
    Outlines,
    Trials,
    drafted,
    offsets_of,
    ranges,
    squared_distance,
    swept,
    swept_ring,
)
from geoseg.polygons.kernel import Kernel, inlined

_CLEARANCE_PX = 1e-3  # between what does not touch: far above rounding, also that of map coordinates
_APART_PX = 0.3  # nodes on a wall, where they would come too close or change places
_LEAST_LEFT = 0.5  # of the area of a neighbour
_CELL_PX = 16.0


def regularize(arcs: Arcs, traced: Arcs, chosen: NDArray[np.bool_], tolerance: float, scale: tuple[float, float] = (1.0, 1.0)) -> Arcs:
    """Give faces straight walls along two principal directions at right angles; their neighbours follow.

    The traced outline of a face falls into walls (Douglas and Peucker 1973), which turn to the nearer of the two principal
    directions; walls that are short are left out one by one, so that simpler and simpler footprints arise, up to a
    rectangle. Of these the one with the best overlap with the traced footprint, less a small price for each corner, takes
    the place of the outline; where it does not fit, the next best, and then those of a finer tolerance. Long walls may keep a
    diagonal direction. Boundaries that end at the outline are cut off where they leave the new one, or led to its nearest point.

    A footprint stays as it is if its overlap (intersection over union) with the traced one would be less than 0.85, if it
    meets the outside of the data, if four boundaries meet in one of its corners, if it shares a boundary with a larger one that
    has changed, or if its neighbours could not follow without crossing, swallowing or halving something. Holes stay.

    Args:
        arcs: smoothed, simplified, or as traced.
        traced: the same arcs on the pixel grid.
        chosen: (F,) bool, faces to regularise.
        tolerance: details smaller than that are dropped; 1.5 pixels at least.
        scale: size of a pixel along columns and along rows, in the unit of ``tolerance``.

    Returns:
        The same arcs with points float64.
    """
    moved = replace(arcs, points=arcs.points.astype(np.float64))
    rings, _, areas = find_rings(moved)
    shells = rings[chosen[rings[:, 1]] & (areas > 0)]
    shells = shells[np.lexsort((shells[:, 1], -arcs.pixels[shells[:, 1]]))]
    halves, ends = _free_shells(shells[:, 0], *network(moved)[:-2])
    free = np.diff(ends, prepend=0) > 0
    shells, ends = shells[free], np.concatenate([[0], ends[free]])
    if not len(shells):
        return moved

    outlines = Outlines(traced)
    unit = float(np.sqrt(scale[0] * scale[1]))
    tolerance_px = max(tolerance / unit, LEAST_TOLERANCE_PX)
    trials = drafted(outlines, shells[:, 1], tolerance_px, np.asarray(scale) / unit)
    face_areas = np.bincount(rings[:, 1], areas, len(arcs.class_id)).astype(np.float64)
    spoilt = np.zeros(len(shells), np.bool_)
    while True:
        done, movers = _settled(moved, halves, ends, trials.only(~spoilt), face_areas, 4 * tolerance_px)
        changed = _affected(done, movers, shells[:, 1], rings[:, 1])
        changed = changed[chosen[changed]]
        if not len(changed):
            return done
        poor = changed[_overlap(Outlines(done).of(changed), outlines.of(changed)) < LEAST_IOU]
        if not len(poor):
            return done
        blamed = movers[np.isin(arcs.left, poor) | np.isin(arcs.right, poor)]
        spoilt[blamed[blamed >= 0]] = True


def _affected(arcs: Arcs, movers: NDArray[np.int32], shells: NDArray[np.int64], rings: NDArray[np.int64]) -> NDArray[np.int64]:
    """The faces that were changed otherwise than a trial foresaw: by another face, or with courtyards that were not as traced."""
    by = np.where(movers >= 0, shells[movers], -1)
    sides = np.concatenate([arcs.left, arcs.right])
    by = np.concatenate([by, by])
    courtyards = np.bincount(rings, minlength=len(arcs.class_id)) > 1
    touched = (by >= 0) & ((by != sides[:, None]) | courtyards[sides][:, None])
    faces: NDArray[np.int64] = np.unique(sides[touched.any(axis=1) & (sides >= 0)])
    return faces


def _overlap(one: NDArray[np.object_], other: NDArray[np.object_]) -> NDArray[np.float64]:
    """Intersection over union of polygons, in pairs."""
    common = shapely.area(shapely.intersection(one, other))
    overlap: NDArray[np.float64] = common / (shapely.area(one) + shapely.area(other) - common)
    return overlap


@Kernel
def _free_shells(
    firsts: NDArray[np.int64],
    slots: NDArray[np.int32],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    left: NDArray[np.int32],
    right: NDArray[np.int32],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Follow the shells that begin with the given half arcs (S,).

    Returns:
        The half arcs of all shells, and where those of each shell end (S,). A shell has none if it, or an arc that it
        meets, bounds the outside; if more than three arcs meet in one of its nodes; or if it passes a node twice.
    """
    halves, count = np.empty((len(firsts) + 1024, 1), np.int64), 0
    ends = np.empty(len(firsts), np.int64)
    passed = np.full(len(slots) // 4, -1, np.int64)
    for shell in range(len(firsts)):
        half, begin, free = firsts[shell], count, True
        while True:
            arc = half >> 1
            if count == len(halves):
                halves = longer(halves, 2 * count)
            halves[count, 0] = half
            count += 1
            free &= left[arc] >= 0 and right[arc] >= 0
            at = end[arc] if half & 1 == 0 else start[arc]
            if at >= 0:
                free &= passed[at >> 2] != shell
                passed[at >> 2] = shell
                degree = 0
                for direction in range(4):
                    other = slots[(at & ~3) + direction] >> 1
                    if other >= 0:
                        degree += 1
                        free &= left[other] >= 0 and right[other] >= 0
                free &= degree <= 3
            half, _ = after_half(half, slots, start, end, left, right)
            if half == firsts[shell]:
                break
        if not free:
            count = begin
        ends[shell] = count
    return halves[:count, 0].copy(), ends


def _settled(
    arcs: Arcs, halves: NDArray[np.int64], ends: NDArray[np.int64], trials: Trials, areas: NDArray[np.float64], reach: float
) -> tuple[Arcs, NDArray[np.int32]]:
    """Put the first footprint that fits in the place of each shell, shell by shell.

    Args:
        arcs: with points float64.
        halves: half arcs of the shells.
        ends: (S + 1,), the half arcs of shell ``s`` are ``halves[ends[s]:ends[s + 1]]``.
        trials: footprints for the shells.
        areas: (F,) of the faces, in pixels.
        reach: how much of an arc that ends at a shell may be cut off, in pixels.

    Returns:
        The arcs, and for both ends of each (A, 2) the shell that moved it, -1 if none did.
    """
    slots, *_ = network(arcs)
    points = arcs.points.astype(np.float64)
    room = len(halves) + int(np.sum(np.diff(trials.offsets) + 2 * np.diff(ends)[trials.shell]))
    fresh, where, bounds, movers = _settle(
        points, arcs.offsets, arcs.left, arcs.right, arcs.start, arcs.end, slots, halves, ends,
        trials.shell, trials.offsets, trials.corners, areas.copy(), reach, room,
    )  # fmt: skip
    kept = where[:, 0] < 0
    begins = np.where(kept, bounds[:, 0], where[:, 0] + len(points))
    lengths = np.where(kept, bounds[:, 1] - bounds[:, 0], where[:, 1])
    offsets = offsets_of(lengths)
    return replace(arcs, points=np.concatenate([points, fresh])[ranges(begins, begins + lengths)], offsets=offsets), movers


@inlined
def _crosses(ax: float, ay: float, bx: float, by: float, cx: float, cy: float, dx: float, dy: float) -> bool:
    """Whether two segments meet or nearly do, other than in an end that they share."""
    near = _CLEARANCE_PX
    if max(ax, bx) + near < min(cx, dx) or max(cx, dx) + near < min(ax, bx):
        return False
    if max(ay, by) + near < min(cy, dy) or max(cy, dy) + near < min(ay, by):
        return False
    a_shared = (ax == cx and ay == cy) or (ax == dx and ay == dy)
    b_shared = (bx == cx and by == cy) or (bx == dx and by == dy)
    c_shared = (cx == ax and cy == ay) or (cx == bx and cy == by)
    d_shared = (dx == ax and dy == ay) or (dx == bx and dy == by)
    if a_shared and b_shared:
        return True
    near *= near
    if not a_shared and squared_distance(ax, ay, cx, cy, dx, dy) < near:
        return True
    if not b_shared and squared_distance(bx, by, cx, cy, dx, dy) < near:
        return True
    if not c_shared and squared_distance(cx, cy, ax, ay, bx, by) < near:
        return True
    if not d_shared and squared_distance(dx, dy, ax, ay, bx, by) < near:
        return True
    if a_shared or b_shared:
        return False
    c_side = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    d_side = (bx - ax) * (dy - ay) - (by - ay) * (dx - ax)
    a_side = (dx - cx) * (ay - cy) - (dy - cy) * (ax - cx)
    b_side = (dx - cx) * (by - cy) - (dy - cy) * (bx - cx)
    return (c_side > 0) != (d_side > 0) and (a_side > 0) != (b_side > 0)


@inlined
def _passes(x: float, y: float, ax: float, ay: float, bx: float, by: float) -> bool:
    """Whether a segment crosses the ray that goes right from a point."""
    return (ay > y) != (by > y) and x < ax + (y - ay) * (bx - ax) / (by - ay)


@inlined
def _within(x: float, y: float, ring: NDArray[np.float64]) -> bool:
    """Whether a point lies in a ring whose last point is not its first."""
    inside = False
    for at in range(len(ring)):
        inside ^= _passes(x, y, ring[at - 1, 0], ring[at - 1, 1], ring[at, 0], ring[at, 1])
    return inside


@inlined
def _cells(extent: NDArray[np.float64], low_x: float, low_y: float, high_x: float, high_y: float) -> tuple[int, int, int, int]:
    """First and last column and row of the cells of a box; ``extent`` is the corner of the cells, and how many there are."""
    last_col, last_row = int(extent[2]) - 1, int(extent[3]) - 1
    return (
        min(max(int((low_x - extent[0]) // _CELL_PX), 0), last_col),
        min(max(int((high_x - extent[0]) // _CELL_PX), 0), last_col),
        min(max(int((low_y - extent[1]) // _CELL_PX), 0), last_row),
        min(max(int((high_y - extent[1]) // _CELL_PX), 0), last_row),
    )


@inlined
def _enter(
    segment: int,
    ax: float,
    ay: float,
    bx: float,
    by: float,
    extent: NDArray[np.float64],
    wanted: NDArray[np.bool_],
    heads: NDArray[np.int64],
    entries: NDArray[np.int64],
    count: int,
) -> tuple[NDArray[np.int64], int]:
    """Enter a segment in the lists of the wanted cells that its box meets."""
    first_col, last_col, first_row, last_row = _cells(extent, min(ax, bx), min(ay, by), max(ax, bx), max(ay, by))
    for row in range(first_row, last_row + 1):
        for col in range(first_col, last_col + 1):
            if wanted[row, col]:
                if count == len(entries):
                    entries = longer(entries, 2 * count)
                entries[count, 0], entries[count, 1] = segment, heads[row, col]
                heads[row, col] = count
                count += 1
    return entries, count


@inlined
def _third(half: int, after: int, slots: NDArray[np.int32], start: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[int, int]:
    """The node between two half arcs, and the third half arc that leaves it; -1 if there is none."""
    at = end[half >> 1] if half & 1 == 0 else start[half >> 1]
    if at < 0:
        return -1, -1
    for direction in range(4):
        other = slots[(at & ~3) + direction]
        if other >= 0 and other != half ^ 1 and other != after:
            return at >> 2, other
    return at >> 2, -1


@inlined
def _nearest(x: float, y: float, ring: NDArray[np.float64]) -> tuple[int, float]:
    """The place on a ring that is nearest to a point: the side, and how far along it."""
    side, along, least = 0, 0.0, np.inf
    for one in range(len(ring)):
        two = (one + 1) % len(ring)
        across, down = ring[two, 0] - ring[one, 0], ring[two, 1] - ring[one, 1]
        length = np.hypot(across, down)
        there = min(max(((x - ring[one, 0]) * across + (y - ring[one, 1]) * down) / length, 0.0), length)
        off = (ring[one, 0] + across * there / length - x) ** 2 + (ring[one, 1] + down * there / length - y) ** 2
        if off < least - 1e-12:
            side, along, least = one, there, off
    return side, along


@inlined
def _landing(points: NDArray[np.float64], at: int, step: int, most: int, ring: NDArray[np.float64], reach: float) -> tuple[int, int, float]:
    """Where an arc that began at ``points[at]`` begins when it ends on a new ring.

    It is cut off where it leaves the ring, no farther than ``reach`` along it; if it meets the ring nowhere, it goes to the
    nearest place. Returns how many points (up to ``most``) are cut off, the side of the ring, and how far along it.
    """
    cut = 0
    side, along = _nearest(points[at, 0], points[at, 1], ring)
    way = 0.0
    for skipped in range(most + 1):
        ax, ay = points[at + step * skipped, 0], points[at + step * skipped, 1]
        bx, by = points[at + step * (skipped + 1), 0], points[at + step * (skipped + 1), 1]
        latest = -1.0
        for one in range(len(ring)):
            two = (one + 1) % len(ring)
            across, down = ring[two, 0] - ring[one, 0], ring[two, 1] - ring[one, 1]
            turn = (bx - ax) * down - (by - ay) * across
            if turn == 0:
                continue
            share = ((ring[one, 0] - ax) * down - (ring[one, 1] - ay) * across) / turn
            there = ((ring[one, 0] - ax) * (by - ay) - (ring[one, 1] - ay) * (bx - ax)) / turn
            if 0 <= share <= 1 and 0 <= there <= 1 and share > latest:
                latest, cut, side, along = share, skipped, one, there * np.hypot(across, down)
        way += np.hypot(bx - ax, by - ay)
        if way > reach:
            break
    return cut, side, along


@inlined
def _spread(places: NDArray[np.float64], around: float, back: float) -> bool:
    """Put places on a ring of length ``around`` in cyclic order, in place: a little apart, each moved as little as possible.

    Isotonic regression, by pooling adjacent violators. Returns False if they do not go round the ring just once, where a
    place may come up to ``back`` before the one that it should follow.
    """
    number = len(places)
    if number < 2:
        return True
    gap = min(_APART_PX, around / (4 * number))
    ahead = np.empty(number, np.float64)
    begin, total = 0, 0.0
    for at in range(number):
        ahead[at] = (places[at] - places[at - 1]) % around
        if ahead[at] > around - back:
            ahead[at] -= around
        total += ahead[at]
        if ahead[at] > ahead[begin]:
            begin = at
    if abs(total - around) > 1e-6 * around:
        return False
    pools = np.empty((number, 2), np.float64)  # sum and number of the places pooled
    size, place = 0, places[begin]
    for at in range(number):
        place += ahead[(begin + at) % number] if at else 0.0
        pools[size, 0], pools[size, 1] = place - at * gap, 1.0
        size += 1
        while size > 1 and pools[size - 2, 0] * pools[size - 1, 1] > pools[size - 1, 0] * pools[size - 2, 1]:
            pools[size - 2] += pools[size - 1]
            size -= 1
    at = 0
    for pool in range(size):
        for _ in range(int(pools[pool, 1])):
            places[(begin + at) % number] = pools[pool, 0] / pools[pool, 1] + at * gap
            at += 1
    if places[begin - 1] + gap > places[begin] + around:
        return False
    places %= around
    return True


@inlined
def _at(place: float, ring: NDArray[np.float64], lengths: NDArray[np.float64]) -> tuple[int, float, float, float]:
    """The side of a ring, the way along it, and the point at a place on it; ``lengths`` end the sides. Corners attract."""
    side = min(int(np.searchsorted(lengths, place, side="right")), len(ring) - 1)
    begin = lengths[side - 1] if side else 0.0
    after = (side + 1) % len(ring)
    length = lengths[side] - begin
    along = place - begin
    if along < _APART_PX / 3:
        return side, 0.0, ring[side, 0], ring[side, 1]
    if length - along < _APART_PX / 3:
        return after, 0.0, ring[after, 0], ring[after, 1]
    share = along / length
    return side, along, ring[side, 0] + share * (ring[after, 0] - ring[side, 0]), ring[side, 1] + share * (ring[after, 1] - ring[side, 1])


@inlined
def _beyond(points: NDArray[np.float64], box: NDArray[np.float64]) -> bool:
    """Whether any point lies outside of a box."""
    beyond = False
    for x, y in points:
        beyond |= x < box[0] or y < box[1] or x > box[2] or y > box[3]
    return beyond


@inlined
def _tangled(
    mine: NDArray[np.int64],
    trial: int,
    ring: NDArray[np.float64],
    box: NDArray[np.float64],
    loops: NDArray[np.float64],
    loop_ends: NDArray[np.int64],
    thirds: NDArray[np.int64],
    shell: NDArray[np.int64],
    points: NDArray[np.float64],
    offsets: NDArray[np.int64],
    owner: NDArray[np.int32],
    fresh: NDArray[np.float64],
    fresh_owner: NDArray[np.int32],
    where: NDArray[np.int64],
    bounds: NDArray[np.int64],
    part: NDArray[np.int64],
    extent: NDArray[np.float64],
    heads: NDArray[np.int64],
    entries: NDArray[np.int64],
) -> bool:
    """Whether the new segments come near each other or another one, or sweep over an arc."""
    old = len(points)
    new = np.empty((len(mine), 4), np.float64)
    for one in range(len(mine)):
        if mine[one] < old:
            new[one, :2], new[one, 2:] = points[mine[one]], points[mine[one] + 1]
        else:
            new[one, :2], new[one, 2:] = fresh[mine[one] - old], fresh[mine[one] - old + 1]
        for two in range(one):
            if _crosses(new[one, 0], new[one, 1], new[one, 2], new[one, 3], new[two, 0], new[two, 1], new[two, 2], new[two, 3]):
                return True
    if _beyond(new[:, :2], box) or _beyond(new[:, 2:], box) or _beyond(loops, box):
        return True  # the other end of an arc has moved out of what is looked at
    for step in range(len(thirds)):
        if thirds[step] >= 0:
            arc = thirds[step] >> 1
            at = bounds[arc, 0] if thirds[step] & 1 == 0 else bounds[arc, 1] - 2
            if _within((points[at, 0] + points[at + 1, 0]) / 2, (points[at, 1] + points[at + 1, 1]) / 2, ring):
                return True
    first_col, last_col, first_row, last_row = _cells(extent, box[0], box[1], box[2], box[3])
    for row in range(first_row, last_row + 1):
        for col in range(first_col, last_col + 1):
            entry = heads[row, col]
            while entry >= 0:
                segment, entry = entries[entry, 0], entries[entry, 1]
                if segment < old:
                    arc = int(owner[segment])
                    if where[arc, 0] >= 0 or segment < bounds[arc, 0] or segment + 1 >= bounds[arc, 1]:
                        continue
                    ax, ay, bx, by = points[segment, 0], points[segment, 1], points[segment + 1, 0], points[segment + 1, 1]
                else:
                    at = segment - old
                    arc = int(fresh_owner[at])
                    ax, ay, bx, by = fresh[at, 0], fresh[at, 1], fresh[at + 1, 0], fresh[at + 1, 1]
                if part[arc, 0] == trial or (part[arc, 1] == trial and (mine == segment).any()):
                    continue
                for one in range(len(new)):
                    if _crosses(new[one, 0], new[one, 1], new[one, 2], new[one, 3], ax, ay, bx, by):
                        return True
                if part[arc, 1] == trial or part[arc, 2] == trial:
                    continue
                part[arc, 2] = trial
                x, y = (ax + bx) / 2, (ay + by) / 2
                inside = _within(x, y, ring)
                for half in shell:
                    for at in range(offsets[half >> 1], offsets[(half >> 1) + 1] - 1):
                        inside ^= _passes(x, y, points[at, 0], points[at, 1], points[at + 1, 0], points[at + 1, 1])
                if inside:
                    return True
                for step in range(len(thirds)):
                    if thirds[step] >= 0 and _within(x, y, loops[loop_ends[step] : loop_ends[step + 1]]):
                        return True
    return False


@Kernel
def _settle(
    points: NDArray[np.float64],
    offsets: NDArray[np.int64],
    left: NDArray[np.int32],
    right: NDArray[np.int32],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    slots: NDArray[np.int32],
    halves: NDArray[np.int64],
    ends: NDArray[np.int64],
    trial_shell: NDArray[np.int64],
    trial_offsets: NDArray[np.int64],
    trial_corners: NDArray[np.float64],
    areas: NDArray[np.float64],
    reach: float,
    room: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """See `_settled`. The ends of arcs that follow are moved in place, in ``points``; so are ``areas``.

    Segments have numbers: ``s`` goes from ``points[s]`` to ``points[s + 1]``, and ``len(points) + s`` from ``fresh[s]`` to
    ``fresh[s + 1]``. Each cell of a grid over the raster has a list of the segments near it.

    Nothing is swept over if no new segment comes near another one, and no arc lies between the old and the new place of a
    segment. An arc that was not moved and crosses nothing lies there as a whole or not at all, so one point of it decides.

    Returns:
        fresh: (M, 2) points of the arcs of new footprints.
        where: (A, 2) begin of an arc in ``fresh`` and number of its points, -1 for other arcs.
        bounds: (A, 2) begin and end of what is left of the other arcs in ``points``.
        movers: (A, 2) shell that moved the beginning and the end of each arc, -1 if none did.
    """
    old = len(points)
    extent = np.zeros(4, np.float64)
    for axis in range(2):
        low, high = points[:, axis].min(), points[:, axis].max()
        extent[axis], extent[axis + 2] = low, (high - low) // _CELL_PX + 1
    heads = np.full((int(extent[3]), int(extent[2])), -1, np.int64)
    wanted = np.zeros(heads.shape, np.bool_)
    boxes = np.empty((len(trial_shell), 4), np.float64)
    for trial in range(len(trial_shell)):
        shell = trial_shell[trial]
        ring = trial_corners[trial_offsets[trial] : trial_offsets[trial + 1]]
        low_x, high_x, low_y, high_y = ring[:, 0].min(), ring[:, 0].max(), ring[:, 1].min(), ring[:, 1].max()
        for step in range(ends[shell], ends[shell + 1]):
            arc = halves[step] >> 1
            for at in range(offsets[arc], offsets[arc + 1]):
                low_x, high_x = min(low_x, points[at, 0]), max(high_x, points[at, 0])
                low_y, high_y = min(low_y, points[at, 1]), max(high_y, points[at, 1])
            after = halves[step + 1 if step + 1 < ends[shell + 1] else ends[shell]]
            _, third = _third(halves[step], after, slots, start, end)
            if third < 0:
                continue
            at, step_in = (offsets[third >> 1], 1) if third & 1 == 0 else (offsets[(third >> 1) + 1] - 1, -1)
            way = 0.0
            for _ in range(offsets[(third >> 1) + 1] - offsets[third >> 1] - 1):
                way += np.hypot(points[at + step_in, 0] - points[at, 0], points[at + step_in, 1] - points[at, 1])
                at += step_in
                low_x, high_x = min(low_x, points[at, 0]), max(high_x, points[at, 0])
                low_y, high_y = min(low_y, points[at, 1]), max(high_y, points[at, 1])
                if way > reach:
                    break
        boxes[trial] = low_x - 1, low_y - 1, high_x + 1, high_y + 1
        first_col, last_col, first_row, last_row = _cells(extent, boxes[trial, 0], boxes[trial, 1], boxes[trial, 2], boxes[trial, 3])
        wanted[first_row : last_row + 1, first_col : last_col + 1] = True

    owner = np.empty(old, np.int32)  # the arc of each segment
    entries, entered = np.empty((1024, 2), np.int64), 0
    for arc in range(len(left)):
        for at in range(offsets[arc], offsets[arc + 1]):
            owner[at] = arc
            if at + 1 < offsets[arc + 1]:
                entries, entered = _enter(
                    at, points[at, 0], points[at, 1], points[at + 1, 0], points[at + 1, 1], extent, wanted, heads, entries, entered
                )

    fresh, made = np.empty((room, 2), np.float64), 0
    fresh_owner = np.empty(room, np.int32)
    where = np.full((len(left), 2), -1, np.int64)
    movers = np.full((len(left), 2), -1, np.int32)
    held = np.zeros(len(slots) // 4, np.bool_)
    part = np.full((len(left), 3), -1, np.int64)  # the trial in which an arc was last: of the ring; led to it; looked at
    bounds = np.empty((len(left), 2), np.int64)
    bounds[:, 0], bounds[:, 1] = offsets[:-1], offsets[1:]
    done = -1
    for trial in range(len(trial_shell)):
        shell = trial_shell[trial]
        if shell == done:
            continue
        ring = trial_corners[trial_offsets[trial] : trial_offsets[trial + 1]]
        steps = ends[shell + 1] - ends[shell]

        # Where the nodes go, in their order, and what the arcs that end there lose.
        lengths = np.empty(len(ring), np.float64)
        for side in range(len(ring)):
            after = (side + 1) % len(ring)
            length = np.hypot(ring[after, 0] - ring[side, 0], ring[after, 1] - ring[side, 1])
            lengths[side] = length + (lengths[side - 1] if side else 0.0)
        places = np.zeros(steps, np.float64)
        thirds, cuts = np.full(steps, -1, np.int64), np.zeros(steps, np.int64)
        fits, closed = swept_ring(ring) < 0, False
        for step in range(steps):
            half, after = halves[ends[shell] + step], halves[ends[shell] + (step + 1) % steps]
            part[half >> 1, 0] = trial
            fits &= where[half >> 1, 0] < 0
            node, third = _third(half, after, slots, start, end)
            closed = node < 0
            if closed:
                break
            fits &= not held[node]
            at = offsets[(half >> 1) + 1] - 1 if half & 1 == 0 else offsets[half >> 1]
            side, along = _nearest(points[at, 0], points[at, 1], ring)
            if third >= 0:
                arc = third >> 1
                at, towards = (bounds[arc, 0], 1) if third & 1 == 0 else (bounds[arc, 1] - 1, -1)
                cuts[step], side, along = _landing(points, at, towards, bounds[arc, 1] - bounds[arc, 0] - 2, ring, reach)
                thirds[step] = third
            places[step] = along + (lengths[side - 1] if side else 0.0)
        if not fits or not (closed or _spread(places, lengths[-1], min(reach, lengths[-1] / 4))):
            continue
        nodes = np.empty((steps, 4), np.float64)  # side and way along it, column, row
        for step in range(steps):
            side, nodes[step, 1], nodes[step, 2], nodes[step, 3] = _at(places[step], ring, lengths)
            nodes[step, 0] = side

        # The arcs of the new ring.
        count = made
        spans = np.empty((steps, 2), np.int64)
        for step in range(steps):
            half = halves[ends[shell] + step]
            begin = count
            if closed:
                top = 0
                for at in range(len(ring)):
                    if ring[at, 1] < ring[top, 1] or (ring[at, 1] == ring[top, 1] and ring[at, 0] < ring[top, 0]):
                        top = at
                for at in range(len(ring) + 1):
                    fresh[count] = ring[(top + at) % len(ring)]
                    count += 1
            else:
                one, two = nodes[step - 1], nodes[step]
                fresh[count] = one[2:]
                count += 1
                sides = int(two[0] - one[0]) % len(ring)
                if sides == 0 and two[1] <= one[1]:
                    sides = len(ring)
                for side in range(1, sides + 1):
                    if side < sides or two[1] > 0:
                        fresh[count] = ring[int(one[0] + side) % len(ring)]
                        count += 1
                fresh[count] = two[2:]
                count += 1
            if half & 1:
                fresh[begin:count] = fresh[begin:count][::-1].copy()
            fresh_owner[begin:count] = half >> 1
            spans[step, 0], spans[step, 1] = begin, count

        # The arcs that are led to the new nodes; each sweeps over a loop: its old beginning, and back by the new node.
        mine, size = np.empty(count - made + steps, np.int64), 0
        for step in range(steps):
            for at in range(spans[step, 0], spans[step, 1] - 1):
                mine[size] = old + at
                size += 1
        loops = np.empty((cuts.sum() + 3 * steps, 2), np.float64)
        loop_ends = np.zeros(steps + 1, np.int64)
        undo = np.empty((steps, 4), np.float64)  # bounds before, column and row of the new end before
        swings = np.zeros(steps, np.float64)
        led = 0
        for step in range(steps):
            loop_ends[step + 1] = loop_ends[step]
            if thirds[step] < 0 or not fits:
                continue
            arc = thirds[step] >> 1
            if bounds[arc, 1] - bounds[arc, 0] - cuts[step] < 2:
                fits = False
                continue
            undo[step, 0], undo[step, 1] = bounds[arc, 0], bounds[arc, 1]
            swings[step] = -swept(points, bounds[arc, 0], bounds[arc, 1])
            at, towards = (bounds[arc, 0], 1) if thirds[step] & 1 == 0 else (bounds[arc, 1] - 1, -1)
            for back in range(cuts[step] + 2):
                loops[loop_ends[step + 1]] = points[at + towards * back]
                loop_ends[step + 1] += 1
            loops[loop_ends[step + 1]] = nodes[step, 2:]
            loop_ends[step + 1] += 1
            at += towards * cuts[step]
            undo[step, 2:] = points[at]
            points[at] = nodes[step, 2:]
            bounds[arc, thirds[step] & 1] += towards * cuts[step]
            swings[step] += swept(points, bounds[arc, 0], bounds[arc, 1])
            led = step + 1
            segment = min(at, at + towards)
            if part[arc, 1] != trial or not (mine[:size] == segment).any():
                mine[size] = segment
                size += 1
            part[arc, 1] = trial
        mine = mine[:size]
        loops = loops[: loop_ends[steps]]

        fits = fits and not _tangled(
            mine, trial, ring, boxes[trial], loops, loop_ends, thirds, halves[ends[shell] : ends[shell + 1]],
            points, offsets, owner, fresh, fresh_owner, where, bounds, part, extent, heads, entries,
        )  # fmt: skip

        # What becomes of the neighbours.
        mine_face = left[halves[ends[shell]] >> 1] if halves[ends[shell]] & 1 == 0 else right[halves[ends[shell]] >> 1]
        gains = np.zeros((4 * steps, 2), np.float64)
        gained = 0
        for step in range(2 * steps):
            if step < steps:
                arc = halves[ends[shell] + step] >> 1
                change = swept(fresh, spans[step, 0], spans[step, 1]) - swept(points, offsets[arc], offsets[arc + 1])
            elif thirds[step - steps] >= 0:
                arc, change = thirds[step - steps] >> 1, swings[step - steps]
            else:
                continue
            gains[gained, 0], gains[gained, 1] = left[arc], -change / 2
            gains[gained + 1, 0], gains[gained + 1, 1] = right[arc], change / 2
            gained += 2
        gains = gains[:gained]
        gains = gains[np.argsort(gains[:, 0], kind="mergesort")]
        for at in range(gained):
            if at and gains[at, 0] == gains[at - 1, 0]:
                gains[at, 1] += gains[at - 1, 1]
            if (at + 1 == gained or gains[at + 1, 0] != gains[at, 0]) and gains[at, 0] != mine_face:
                fits &= areas[int(gains[at, 0])] + gains[at, 1] >= _LEAST_LEFT * areas[int(gains[at, 0])]

        if not fits:
            for step in range(led - 1, -1, -1):
                if thirds[step] >= 0:
                    arc = thirds[step] >> 1
                    points[bounds[arc, 0] if thirds[step] & 1 == 0 else bounds[arc, 1] - 1] = undo[step, 2:]
                    bounds[arc, 0], bounds[arc, 1] = int(undo[step, 0]), int(undo[step, 1])
            continue
        done, made = shell, count
        for at in range(gained):
            if at + 1 == gained or gains[at + 1, 0] != gains[at, 0]:
                areas[int(gains[at, 0])] += gains[at, 1]
        for step in range(steps):
            arc = halves[ends[shell] + step] >> 1
            where[arc, 0], where[arc, 1] = spans[step, 0], spans[step, 1] - spans[step, 0]
            movers[arc, 0] = movers[arc, 1] = shell
            node, _ = _third(halves[ends[shell] + step], halves[ends[shell] + (step + 1) % steps], slots, start, end)
            if node >= 0:
                held[node] = True
            if thirds[step] >= 0:
                movers[thirds[step] >> 1, thirds[step] & 1] = shell
        for segment in mine:
            if segment < old:
                ax, ay, bx, by = points[segment, 0], points[segment, 1], points[segment + 1, 0], points[segment + 1, 1]
            else:
                at = segment - old
                ax, ay, bx, by = fresh[at, 0], fresh[at, 1], fresh[at + 1, 0], fresh[at + 1, 1]
            entries, entered = _enter(segment, ax, ay, bx, by, extent, wanted, heads, entries, entered)
    return fresh[:made].copy(), where, bounds, movers
