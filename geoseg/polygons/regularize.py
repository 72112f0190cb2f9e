"""Give buildings straight walls and right angles, and let their neighbours follow."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.polygons.arcs import Arcs, longer
from geoseg.polygons.coverage import _after, _network, assemble, find_rings
from geoseg.polygons.kernel import Kernel, Number, inlined

LEAST_IOU = 0.85  # with the traced footprint; below it, the footprint stays as it is

_LEAST_TOLERANCE_PX = 1.5  # the steps of a slanted wall are up to one pixel high
_CORNER_PRICE = 1.0  # what a corner must gain in overlap, in squares of the tolerance
_BATCH = 4096  # footprints drafted at a time: bounds the scratch memory
_MOST_WALLS = 512  # a face with more is not a footprint; the time to draft one grows with their square
_FEW_WALLS = 8  # from here on, every simpler footprint is tried
_CLEARANCE_PX = 1e-3  # between what does not touch: far above rounding, also that of map coordinates
_APART_PX = 0.3  # nodes on a wall, where they would come too close or change places
_LEAST_LEFT = 0.5  # of the area of a neighbour
_CELL_PX = 16.0

# Columns of the table of walls: length, first and second moments of the traced outline along it; its kind and line.
_W, _X, _Y, _XX, _XY, _YY, _KIND, _NX, _NY, _OFFSET = range(10)
_ALONG, _ACROSS, _FREE = range(3)  # kinds of walls: along the principal direction, at right angles to it, neither


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
    halves, ends = _free_shells(shells[:, 0], *_network(moved)[:-2])
    free = np.diff(ends, prepend=0) > 0
    shells, ends = shells[free], np.concatenate([[0], ends[free]])
    if not len(shells):
        return moved

    outlines = _Outlines(traced)
    unit = float(np.sqrt(scale[0] * scale[1]))
    tolerance_px = max(tolerance / unit, _LEAST_TOLERANCE_PX)
    trials = _drafted(outlines, shells[:, 1], tolerance_px, np.asarray(scale) / unit)
    face_areas = np.bincount(rings[:, 1], areas, len(arcs.class_id)).astype(np.float64)
    spoilt = np.zeros(len(shells), np.bool_)
    while True:
        done, movers = _settled(moved, halves, ends, trials.only(~spoilt), face_areas, 4 * tolerance_px)
        changed = _affected(done, movers, shells[:, 1], rings[:, 1])
        changed = changed[chosen[changed]]
        if not len(changed):
            return done
        poor = changed[_overlap(_Outlines(done).of(changed), outlines.of(changed)) < LEAST_IOU]
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


class _Outlines:
    """The polygons of some faces at a time."""

    def __init__(self, arcs: Arcs) -> None:
        self._faces = assemble(arcs)

    def rings(self, faces: NDArray[np.int64]) -> tuple[NDArray[np.float64], tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Points (V, 2), and the offsets of their rings (R + 1,) and of the rings of each face (F + 1,)."""
        begins, ends = self._faces.face_offsets[faces], self._faces.face_offsets[faces + 1]
        rings = _ranges(begins, ends)
        first, last = self._faces.ring_offsets[rings], self._faces.ring_offsets[rings + 1]
        points = self._faces.vertices[_ranges(first, last)].astype(np.float64)
        return points, (_offsets(last - first), _offsets(ends - begins))

    def of(self, faces: NDArray[np.int64]) -> NDArray[np.object_]:
        """Shapely polygons (F,), in pixels."""
        polygons: NDArray[np.object_] = shapely.from_ragged_array(shapely.GeometryType.POLYGON, *self.rings(faces))
        return polygons


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)])


def _ranges(begins: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """All numbers from each begin up to its end."""
    lengths = ends - begins
    before = np.cumsum(lengths) - lengths
    numbers: NDArray[np.int64] = np.arange(lengths.sum()) + np.repeat(begins - before, lengths)
    return numbers


def _overlap(one: NDArray[np.object_], other: NDArray[np.object_]) -> NDArray[np.float64]:
    """Intersection over union of polygons, in pairs."""
    common = shapely.area(shapely.intersection(one, other))
    overlap: NDArray[np.float64] = common / (shapely.area(one) + shapely.area(other) - common)
    return overlap


@dataclass(frozen=True, eq=False)
class _Trials:
    """Footprints that may take the place of shells: by shell, the best of each first.

    Attributes:
        shell: (T,) int64.
        offsets: (T + 1,) int64, the corners of trial ``t`` are ``corners[offsets[t]:offsets[t + 1]]``.
        corners: (C, 2) float64, column and row, around the shell as its half arcs run; the last is not the first.
    """

    shell: NDArray[np.int64]
    offsets: NDArray[np.int64]
    corners: NDArray[np.float64]

    def only(self, kept: NDArray[np.bool_]) -> _Trials:
        """Those for the shells (S,) that are kept."""
        return self.take(np.flatnonzero(kept[self.shell]))

    def take(self, trials: NDArray[np.int64]) -> _Trials:
        """These, in this order."""
        begins, ends = self.offsets[trials], self.offsets[trials + 1]
        offsets = _offsets(ends - begins)
        return _Trials(self.shell[trials], offsets, self.corners[_ranges(begins, ends)])


def _drafted(outlines: _Outlines, faces: NDArray[np.int64], tolerance: float, stretch: NDArray[np.float64]) -> _Trials:
    """Footprints that overlap the faces (S,) well enough, then finer ones, of half the tolerance.

    Where there are none so far, half of that is tried, and so on. ``stretch`` makes pixels square, of unit area.
    """
    parts = []
    for first in range(0, len(faces), _BATCH):
        left = np.arange(first, min(first + _BATCH, len(faces)))
        detail = tolerance
        while len(left) and detail >= min(tolerance, _LEAST_TOLERANCE_PX):
            trials = _scored(outlines, faces[left], detail, _CORNER_PRICE * tolerance**2, stretch)
            parts.append(replace(trials, shell=left[trials.shell]))
            if detail < tolerance:
                left = np.setdiff1d(left, parts[-1].shell)
            detail /= 2
    whole = _Trials(
        np.concatenate([part.shell for part in parts]),
        _offsets(np.concatenate([np.diff(part.offsets) for part in parts])),
        np.concatenate([part.corners for part in parts]),
    )
    return whole.take(np.argsort(whole.shell, kind="stable"))


def _scored(outlines: _Outlines, faces: NDArray[np.int64], tolerance: float, price: float, stretch: NDArray[np.float64]) -> _Trials:
    """Footprints for faces (S,), the best first; ``price`` is the area in pixels that a corner must gain."""
    points, (rings, polygons) = outlines.rings(faces)
    corners, lengths, shell = _draft(points * stretch, rings, polygons, tolerance)
    trials = _Trials(shell, _offsets(lengths), corners / stretch)
    loops = shapely.linearrings(trials.corners, indices=np.repeat(np.arange(len(shell)), lengths))
    sound = np.flatnonzero(shapely.is_simple(loops))
    trials, lengths = trials.take(sound), lengths[sound]
    overlap, areas = _overlaps(trials.shell, trials.offsets, trials.corners, points, rings, polygons)
    order = np.lexsort((lengths * price / areas - overlap, trials.shell))
    return trials.take(order[overlap[order] >= LEAST_IOU])


@Kernel
def _overlaps(
    shell: NDArray[np.int64],
    offsets: NDArray[np.int64],
    corners: NDArray[np.float64],
    points: NDArray[np.float64],
    rings: NDArray[np.int64],
    polygons: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intersection over union of trials and the polygons of their shells, the courtyards cut out of both; area of the polygons.

    A polygon is the sum of the trapezia between its edges and a line below it, some of them negative. So the area that two
    polygons have in common is a sum over pairs of edges, of the area below both.
    """
    overlap, areas = np.empty(len(shell), np.float64), np.empty(len(shell), np.float64)
    for trial in range(len(shell)):
        ring = corners[offsets[trial] : offsets[trial + 1]]
        first, last = polygons[shell[trial]], polygons[shell[trial] + 1]
        base = ring[:, 1].min()
        for at in range(rings[first], rings[first + 1]):
            base = min(base, points[at, 1])
        common, area, court = 0.0, 0.0, 0.0
        for hole in range(first, last):
            twice = _swept(points, rings[hole], rings[hole + 1])
            area -= twice / 2
            court += twice / 2 if hole > first else 0.0
            for at in range(rings[hole], rings[hole + 1] - 1):
                if points[at, 0] == points[at + 1, 0]:
                    continue
                for side in range(len(ring)):
                    common += _below(points[at], points[at + 1], ring[side - 1], ring[side], base)
        overlap[trial] = common / (area - _swept_ring(ring) / 2 - court - common)
        areas[trial] = area
    return overlap, areas


@inlined
def _below(a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64], d: NDArray[np.float64], base: float) -> float:
    """Area between a line of constant y, and what of two segments is nearer to it; negative if one goes right, the other left."""
    low, high = max(min(a[0], b[0]), min(c[0], d[0])), min(max(a[0], b[0]), max(c[0], d[0]))
    if low >= high:
        return 0.0
    rise, climb = (b[1] - a[1]) / (b[0] - a[0]), (d[1] - c[1]) / (d[0] - c[0])
    one_low, one_high = a[1] + rise * (low - a[0]) - base, a[1] + rise * (high - a[0]) - base
    two_low, two_high = c[1] + climb * (low - c[0]) - base, c[1] + climb * (high - c[0]) - base
    area: float = (min(one_low, two_low) + min(one_high, two_high)) / 2
    left, right = one_low - two_low, one_high - two_high
    if left * right < 0:  # they cross, and the lower of the two bulges above the chord of its ends
        area -= left * right / abs(left - right) / 2
    area *= high - low if (b[0] > a[0]) == (d[0] > c[0]) else low - high
    return area


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
            half, _ = _after(half, slots, start, end, left, right)
            if half == firsts[shell]:
                break
        if not free:
            count = begin
        ends[shell] = count
    return halves[:count, 0].copy(), ends


@Kernel
def _draft(
    points: NDArray[np.float64], rings: NDArray[np.int64], polygons: NDArray[np.int64], tolerance: float
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Draft footprints for faces, without a look at their neighbours.

    Args:
        points: (V, 2) corners of the traced rings, the first of a ring repeated as its last.
        rings: (R + 1,) offsets of the rings.
        polygons: (F + 1,) offsets of the rings of each face; the first is its shell.
        tolerance: in the unit of the points; one pixel is about 1.

    Returns:
        Corners (C, 2), the number of corners of each draft (T,), and its face (T,).
    """
    corners, count = np.empty((1024, 2), np.float64), 0
    drafts, made = np.empty((1024, 2), np.int64), 0
    for face in range(len(polygons) - 1):
        shell = polygons[face]
        outline = _from_afar(points[rings[shell] : rings[shell + 1]])
        origin_x, origin_y = outline[0, 0], outline[0, 1]
        outline[:, 0] -= origin_x
        outline[:, 1] -= origin_y
        breaks = _breaks(outline, tolerance)
        finer = tolerance
        while len(breaks) < 5 and finer > 0.3:
            finer /= 2
            breaks = _breaks(outline, finer)
        if not 5 <= len(breaks) <= _MOST_WALLS:
            continue
        moments = _moments(outline, breaks)
        most = _most_aligned(outline, breaks)
        first = _refined(most, outline, breaks, moments)
        second = _refined(_tightest(outline, breaks), outline, breaks, moments)
        for attempt in range(4):
            angle = first if attempt < 2 else second
            if attempt == 2 and abs((second - first + np.pi / 4) % (np.pi / 2) - np.pi / 4) < 0.01:
                break
            walls = np.empty((2 * len(breaks) + 2, 10), np.float64)
            number, slanted = _walls(walls, outline, breaks, angle, tolerance, attempt & 1 == 1)
            if attempt & 1 == 1 and not slanted:
                continue
            sound = False
            while True:
                shortest, length = _shortest(walls, number)
                if length >= tolerance and (number <= _FEW_WALLS or not sound):
                    sound = True
                    if count + number > len(corners):
                        corners = longer(corners, count + number)
                    for wall in range(number):
                        x, y = _corner(walls, wall, (wall + 1) % number)
                        corners[count + wall, 0] = origin_x + np.cos(angle) * x - np.sin(angle) * y
                        corners[count + wall, 1] = origin_y + np.sin(angle) * x + np.cos(angle) * y
                    if made == len(drafts):
                        drafts = longer(drafts, 2 * made)
                    drafts[made, 0], drafts[made, 1] = number, face
                    made += 1
                    count += number
                fewer = _without(walls, number, shortest)
                if fewer == number:
                    break
                number = fewer
    return corners[:count].copy(), drafts[:made, 0].copy(), drafts[:made, 1].copy()


@inlined
def _from_afar(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """A copy of a closed ring that begins at the point farthest from its middle."""
    count = len(ring) - 1
    x, y = ring[:count, 0].mean(), ring[:count, 1].mean()
    begin, farthest = 0, -1.0
    for at in range(count):
        away = (ring[at, 0] - x) ** 2 + (ring[at, 1] - y) ** 2
        if away > farthest + 1e-9:
            begin, farthest = at, away
    turned = np.empty_like(ring)
    for at in range(count + 1):
        turned[at] = ring[(begin + at) % count]
    return turned


@inlined
def _off(x: float, y: float, begin_x: float, begin_y: float, end_x: float, end_y: float) -> float:
    """Squared distance of a point from a segment."""
    across, down = end_x - begin_x, end_y - begin_y
    length = across * across + down * down
    share = 0.0 if length == 0 else min(max(((x - begin_x) * across + (y - begin_y) * down) / length, 0.0), 1.0)
    off_x, off_y = begin_x + share * across - x, begin_y + share * down - y
    return off_x * off_x + off_y * off_y


@inlined
def _breaks(ring: NDArray[np.float64], tolerance: float) -> NDArray[np.int64]:
    """Where walls meet: the points of a closed ring that Douglas and Peucker keep, the first and the last among them."""
    last, opposite, farthest = len(ring) - 1, 0, -1.0
    for at in range(last):
        away = (ring[at, 0] - ring[0, 0]) ** 2 + (ring[at, 1] - ring[0, 1]) ** 2
        if away > farthest + 1e-9:
            opposite, farthest = at, away
    kept = np.zeros(len(ring), np.bool_)
    kept[0] = kept[opposite] = kept[last] = True
    waiting = np.empty((len(ring) + 2, 2), np.int64)
    waiting[0, 0], waiting[0, 1], waiting[1, 0], waiting[1, 1] = 0, opposite, opposite, last
    depth = 2
    while depth:
        depth -= 1
        begin, end = waiting[depth, 0], waiting[depth, 1]
        widest, where = tolerance * tolerance, -1
        for at in range(begin + 1, end):
            off = _off(ring[at, 0], ring[at, 1], ring[begin, 0], ring[begin, 1], ring[end, 0], ring[end, 1])
            if off > widest + 1e-9:
                widest, where = off, at
        if where >= 0:
            kept[where] = True
            waiting[depth, 0], waiting[depth, 1], waiting[depth + 1, 0], waiting[depth + 1, 1] = begin, where, where, end
            depth += 2
    return np.flatnonzero(kept)


@inlined
def _moments(ring: NDArray[np.float64], breaks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Length, first and second moments (M, 6) of the outline between consecutive breaks."""
    moments = np.zeros((len(breaks) - 1, 6), np.float64)
    for piece in range(len(breaks) - 1):
        for at in range(breaks[piece], breaks[piece + 1]):
            across, down = ring[at + 1, 0] - ring[at, 0], ring[at + 1, 1] - ring[at, 1]
            x, y = ring[at, 0] + across / 2, ring[at, 1] + down / 2
            length = np.hypot(across, down)
            moments[piece, _W] += length
            moments[piece, _X] += length * x
            moments[piece, _Y] += length * y
            moments[piece, _XX] += length * (x * x + across * across / 12)
            moments[piece, _XY] += length * (x * y + across * down / 12)
            moments[piece, _YY] += length * (y * y + down * down / 12)
    return moments


@inlined
def _chord(ring: NDArray[np.float64], breaks: NDArray[np.int64], piece: int) -> tuple[float, float]:
    """Direction and length of the straight line between two breaks."""
    across = ring[breaks[piece + 1], 0] - ring[breaks[piece], 0]
    down = ring[breaks[piece + 1], 1] - ring[breaks[piece], 1]
    return np.arctan2(down, across), np.hypot(across, down)


@inlined
def _askew(angle: float) -> float:
    """How far an angle is from the nearest multiple of a right angle, -45 to 45 degrees, in radians."""
    return (angle + np.pi / 4) % (np.pi / 2) - np.pi / 4


@inlined
def _most_aligned(ring: NDArray[np.float64], breaks: NDArray[np.int64]) -> float:
    """The direction of the wall to which most of the outline is parallel or at right angles, give or take 15 degrees."""
    chosen, best = 0.0, -1.0
    for piece in range(len(breaks) - 1):
        angle, _ = _chord(ring, breaks, piece)
        support = 0.0
        for other in range(len(breaks) - 1):
            towards, length = _chord(ring, breaks, other)
            support += length * max(0.0, 1 - abs(_askew(towards - angle)) / np.radians(15))
        if support > best + 1e-9:
            chosen, best = angle, support
    return chosen


@inlined
def _tightest(ring: NDArray[np.float64], breaks: NDArray[np.int64]) -> float:
    """The direction of the wall along which the smallest box holds the outline."""
    chosen, best = 0.0, np.inf
    for piece in range(len(breaks) - 1):
        angle, _ = _chord(ring, breaks, piece)
        cos, sin = np.cos(angle), np.sin(angle)
        low_x, high_x, low_y, high_y = np.inf, -np.inf, np.inf, -np.inf
        for at in breaks:
            x, y = cos * ring[at, 0] + sin * ring[at, 1], cos * ring[at, 1] - sin * ring[at, 0]
            low_x, high_x, low_y, high_y = min(low_x, x), max(high_x, x), min(low_y, y), max(high_y, y)
        area = (high_x - low_x) * (high_y - low_y)
        if area < best - 1e-9:
            chosen, best = angle, area
    return chosen


@inlined
def _refined(angle: float, ring: NDArray[np.float64], breaks: NDArray[np.int64], moments: NDArray[np.float64]) -> float:
    """The direction that fits best, by least squares, all walls that are nearly parallel or at right angles to the given one.

    The stairs of a slanted wall scatter evenly around it, so the fit sees through them.
    """
    for _ in range(2):
        xx, xy, yy = 0.0, 0.0, 0.0
        for piece in range(len(moments)):
            towards, _ = _chord(ring, breaks, piece)
            if abs(_askew(towards - angle)) > np.radians(20):
                continue
            w, x, y = moments[piece, _W], moments[piece, _X], moments[piece, _Y]
            own_xx = moments[piece, _XX] - x * x / w
            own_xy = moments[piece, _XY] - x * y / w
            own_yy = moments[piece, _YY] - y * y / w
            if abs(np.cos(towards - angle)) > np.sqrt(0.5):
                xx, xy, yy = xx + own_xx, xy + own_xy, yy + own_yy
            else:
                xx, xy, yy = xx + own_yy, xy - own_xy, yy + own_xx
        if xx + yy > 0:
            angle = np.arctan2(2 * xy, xx - yy) / 2
    return angle


@inlined
def _walls(
    walls: NDArray[np.float64], ring: NDArray[np.float64], breaks: NDArray[np.int64], angle: float, tolerance: float, freely: bool
) -> tuple[int, bool]:
    """Turn the pieces of an outline into walls, in the frame of the principal direction.

    Each runs along or across, or, ``freely``, in its own direction if it is long and clearly diagonal. Two that are parallel
    get a wall across between them. Returns their number, and whether any is diagonal.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    turned = np.empty_like(ring)
    for at in range(len(ring)):
        turned[at, 0] = cos * ring[at, 0] + sin * ring[at, 1]
        turned[at, 1] = cos * ring[at, 1] - sin * ring[at, 0]
    moments = _moments(turned, breaks)
    number, slanted = 0, False
    for piece in range(len(moments) + 1):
        again = piece == len(moments)  # the first piece, seen from the last
        x, y = turned[breaks[piece % len(moments)], 0], turned[breaks[piece % len(moments)], 1]
        towards, length = _chord(turned, breaks, piece % len(moments))
        kind = _ALONG if abs(np.cos(towards)) >= np.sqrt(0.5) else _ACROSS
        if freely and length > 6 * tolerance and abs(_askew(towards)) > np.radians(25):
            kind, slanted = _FREE, True
        if number and kind != _FREE and walls[number - 1, _KIND] == kind:
            tiny = 1e-6
            walls[number, _W], walls[number, _X], walls[number, _Y] = tiny, tiny * x, tiny * y
            walls[number, _XX], walls[number, _XY], walls[number, _YY] = tiny * x * x, tiny * x * y, tiny * y * y
            walls[number, _KIND] = _ACROSS if kind == _ALONG else _ALONG
            _fit(walls, number)
            number += 1
        if not again:
            walls[number, :_KIND] = moments[piece]
            walls[number, _KIND] = kind
            _fit(walls, number)
            number += 1
    return number, slanted


@inlined
def _fit(walls: NDArray[np.float64], wall: Number) -> None:
    """Lay the line of a wall through the middle of its outline."""
    x, y = walls[wall, _X] / walls[wall, _W], walls[wall, _Y] / walls[wall, _W]
    across, down = 0.0, 1.0
    if walls[wall, _KIND] == _ACROSS:
        across, down = 1.0, 0.0
    elif walls[wall, _KIND] == _FREE:
        xx = walls[wall, _XX] - walls[wall, _X] * x
        xy = walls[wall, _XY] - walls[wall, _X] * y
        yy = walls[wall, _YY] - walls[wall, _Y] * y
        angle = np.arctan2(2 * xy, xx - yy) / 2
        across, down = -np.sin(angle), np.cos(angle)
    walls[wall, _NX], walls[wall, _NY], walls[wall, _OFFSET] = across, down, across * x + down * y


@inlined
def _corner(walls: NDArray[np.float64], one: Number, two: Number) -> tuple[float, float]:
    """Where the lines of two walls meet; far away if they are parallel."""
    turn = walls[one, _NX] * walls[two, _NY] - walls[one, _NY] * walls[two, _NX]
    if abs(turn) < 1e-6:
        return 1e9, 1e9
    x = (walls[one, _OFFSET] * walls[two, _NY] - walls[two, _OFFSET] * walls[one, _NY]) / turn
    y = (walls[one, _NX] * walls[two, _OFFSET] - walls[two, _NX] * walls[one, _OFFSET]) / turn
    return x, y


@inlined
def _shortest(walls: NDArray[np.float64], number: int) -> tuple[int, float]:
    """The shortest wall and its length."""
    shortest, least = 0, np.inf
    x, y = _corner(walls, number - 1, 0)
    for wall in range(number):
        next_x, next_y = _corner(walls, wall, (wall + 1) % number)
        length = np.hypot(next_x - x, next_y - y)
        if length < least - 1e-9:
            shortest, least = wall, length
        x, y = next_x, next_y
    return shortest, least


@inlined
def _without(walls: NDArray[np.float64], number: int, wall: int) -> int:
    """Leave out a wall; its neighbours, if they are parallel, become one. Returns how many are left, at least four."""
    before, after = (wall - 1) % number, (wall + 1) % number
    turn = walls[before, _NX] * walls[after, _NY] - walls[before, _NY] * walls[after, _NX]
    parallel = abs(turn) < np.sin(np.radians(15))
    if number - 1 - parallel < 4:
        return number
    if parallel:
        if walls[after, _KIND] < walls[before, _KIND]:
            walls[before, _KIND] = walls[after, _KIND]
        walls[before, :_KIND] += walls[after, :_KIND]
        _fit(walls, before)
    kept = 0
    for other in range(number):
        if other != wall and not (parallel and other == after):
            walls[kept] = walls[other]
            kept += 1
    return kept


def _settled(
    arcs: Arcs, halves: NDArray[np.int64], ends: NDArray[np.int64], trials: _Trials, areas: NDArray[np.float64], reach: float
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
    slots, *_ = _network(arcs)
    points = arcs.points.astype(np.float64)
    room = len(halves) + int(np.sum(np.diff(trials.offsets) + 2 * np.diff(ends)[trials.shell]))
    fresh, where, bounds, movers = _settle(
        points, arcs.offsets, arcs.left, arcs.right, arcs.start, arcs.end, slots, halves, ends,
        trials.shell, trials.offsets, trials.corners, areas.copy(), reach, room,
    )  # fmt: skip
    kept = where[:, 0] < 0
    begins = np.where(kept, bounds[:, 0], where[:, 0] + len(points))
    lengths = np.where(kept, bounds[:, 1] - bounds[:, 0], where[:, 1])
    offsets = _offsets(lengths)
    return replace(arcs, points=np.concatenate([points, fresh])[_ranges(begins, begins + lengths)], offsets=offsets), movers


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
    if not a_shared and _off(ax, ay, cx, cy, dx, dy) < near:
        return True
    if not b_shared and _off(bx, by, cx, cy, dx, dy) < near:
        return True
    if not c_shared and _off(cx, cy, ax, ay, bx, by) < near:
        return True
    if not d_shared and _off(dx, dy, ax, ay, bx, by) < near:
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
def _swept(points: NDArray[np.float64], begin: int, end: int) -> float:
    """Twice the area between points and the origin."""
    area = 0.0
    for at in range(begin + 1, end):
        area += points[at - 1, 0] * points[at, 1] - points[at, 0] * points[at - 1, 1]
    return area


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
def _swept_ring(ring: NDArray[np.float64]) -> float:
    """Twice the area of a ring whose last point is not its first: negative where it has its inside on the left."""
    area = 0.0
    for at in range(len(ring)):
        area += ring[at - 1, 0] * ring[at, 1] - ring[at, 0] * ring[at - 1, 1]
    return area


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
        fits, closed = _swept_ring(ring) < 0, False
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
            swings[step] = -_swept(points, bounds[arc, 0], bounds[arc, 1])
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
            swings[step] += _swept(points, bounds[arc, 0], bounds[arc, 1])
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
                change = _swept(fresh, spans[step, 0], spans[step, 1]) - _swept(points, offsets[arc], offsets[arc + 1])
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
