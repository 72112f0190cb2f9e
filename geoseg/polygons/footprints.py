"""Footprints with straight walls and right angles that come close to traced ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.polygons.arcs import Arcs, longer
from geoseg.polygons.coverage import assemble
from geoseg.polygons.kernel import Kernel, Number, inlined

LEAST_IOU = 0.85  # with the traced footprint; below it, the footprint stays as it is
LEAST_TOLERANCE_PX = 1.5  # the steps of a slanted wall are up to one pixel high

_CORNER_PRICE = 1.0  # what a corner must gain in overlap, in squares of the tolerance
_BATCH = 4096  # footprints drafted at a time: bounds the scratch memory
_MOST_WALLS = 512  # a face with more is not a footprint; the time to draft one grows with their square
_FEW_WALLS = 8  # from here on, every simpler footprint is tried

# Columns of the table of walls: length, first and second moments of the traced outline along it; its kind and line.
_W, _X, _Y, _XX, _XY, _YY, _KIND, _NX, _NY, _OFFSET = range(10)
_ALONG, _ACROSS, _FREE = range(3)  # kinds of walls: along the principal direction, at right angles to it, neither


class Outlines:
    """The polygons of some faces at a time."""

    def __init__(self, arcs: Arcs) -> None:
        self._faces = assemble(arcs)

    def rings(self, faces: NDArray[np.int64]) -> tuple[NDArray[np.float64], tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Points (V, 2), and the offsets of their rings (R + 1,) and of the rings of each face (F + 1,)."""
        begins, ends = self._faces.face_offsets[faces], self._faces.face_offsets[faces + 1]
        rings = ranges(begins, ends)
        first, last = self._faces.ring_offsets[rings], self._faces.ring_offsets[rings + 1]
        points = self._faces.vertices[ranges(first, last)].astype(np.float64)
        return points, (offsets_of(last - first), offsets_of(ends - begins))

    def of(self, faces: NDArray[np.int64]) -> NDArray[np.object_]:
        """Shapely polygons (F,), in pixels."""
        polygons: NDArray[np.object_] = shapely.from_ragged_array(shapely.GeometryType.POLYGON, *self.rings(faces))
        return polygons


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where runs of these lengths begin and end (N + 1,)."""
    return np.concatenate([[0], np.cumsum(lengths)])


def ranges(begins: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """All numbers from each begin up to its end."""
    lengths = ends - begins
    before = np.cumsum(lengths) - lengths
    numbers: NDArray[np.int64] = np.arange(lengths.sum()) + np.repeat(begins - before, lengths)
    return numbers


@dataclass(frozen=True, eq=False)
class Trials:
    """Footprints that may take the place of shells: by shell, the best of each first.

    Attributes:
        shell: (T,) int64.
        offsets: (T + 1,) int64, the corners of trial ``t`` are ``corners[offsets[t]:offsets[t + 1]]``.
        corners: (C, 2) float64, column and row, around the shell as its half arcs run; the last is not the first.
    """

    shell: NDArray[np.int64]
    offsets: NDArray[np.int64]
    corners: NDArray[np.float64]

    def only(self, kept: NDArray[np.bool_]) -> Trials:
        """Those for the shells (S,) that are kept."""
        return self.take(np.flatnonzero(kept[self.shell]))

    def take(self, trials: NDArray[np.int64]) -> Trials:
        """These, in this order."""
        begins, ends = self.offsets[trials], self.offsets[trials + 1]
        offsets = offsets_of(ends - begins)
        return Trials(self.shell[trials], offsets, self.corners[ranges(begins, ends)])


def drafted(outlines: Outlines, faces: NDArray[np.int64], tolerance: float, stretch: NDArray[np.float64]) -> Trials:
    """Footprints that overlap the faces (S,) well enough, then finer ones, of half the tolerance.

    Where there are none so far, half of that is tried, and so on. ``stretch`` makes pixels square, of unit area.
    """
    parts = []
    for first in range(0, len(faces), _BATCH):
        left = np.arange(first, min(first + _BATCH, len(faces)))
        detail = tolerance
        while len(left) and detail >= min(tolerance, LEAST_TOLERANCE_PX):
            trials = _scored(outlines, faces[left], detail, _CORNER_PRICE * tolerance**2, stretch)
            parts.append(replace(trials, shell=left[trials.shell]))
            if detail < tolerance:
                left = np.setdiff1d(left, parts[-1].shell)
            detail /= 2
    whole = Trials(
        np.concatenate([part.shell for part in parts]),
        offsets_of(np.concatenate([np.diff(part.offsets) for part in parts])),
        np.concatenate([part.corners for part in parts]),
    )
    return whole.take(np.argsort(whole.shell, kind="stable"))


def _scored(outlines: Outlines, faces: NDArray[np.int64], tolerance: float, price: float, stretch: NDArray[np.float64]) -> Trials:
    """Footprints for faces (S,), the best first; ``price`` is the area in pixels that a corner must gain."""
    points, (rings, polygons) = outlines.rings(faces)
    corners, lengths, shell = _draft(points * stretch, rings, polygons, tolerance)
    trials = Trials(shell, offsets_of(lengths), corners / stretch)
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
            twice = swept(points, rings[hole], rings[hole + 1])
            area -= twice / 2
            court += twice / 2 if hole > first else 0.0
            for at in range(rings[hole], rings[hole + 1] - 1):
                if points[at, 0] == points[at + 1, 0]:
                    continue
                for side in range(len(ring)):
                    common += _below(points[at], points[at + 1], ring[side - 1], ring[side], base)
        overlap[trial] = common / (area - swept_ring(ring) / 2 - court - common)
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


@inlined
def swept(points: NDArray[np.float64], begin: int, end: int) -> float:
    """Twice the area between points and the origin."""
    area = 0.0
    for at in range(begin + 1, end):
        area += points[at - 1, 0] * points[at, 1] - points[at, 0] * points[at - 1, 1]
    return area


@inlined
def swept_ring(ring: NDArray[np.float64]) -> float:
    """Twice the area of a ring whose last point is not its first: negative where it has its inside on the left."""
    area = 0.0
    for at in range(len(ring)):
        area += ring[at - 1, 0] * ring[at, 1] - ring[at, 0] * ring[at - 1, 1]
    return area


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
def squared_distance(x: float, y: float, begin_x: float, begin_y: float, end_x: float, end_y: float) -> float:
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
            off = squared_distance(ring[at, 0], ring[at, 1], ring[begin, 0], ring[begin, 1], ring[end, 0], ring[end, 1])
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
