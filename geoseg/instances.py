"""Instances seen by overlapping tiles, each of them once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.window import Window

AGREE: Final = 0.5
"""Two views agree from this IoU in the overlap of their tiles, or this IoS of the whole masks."""

RIM: Final = 1 / 8
"""Share of the overlap that is a tile's rim, at each of its sides behind which the grid goes on."""

DEEP: Final = 1 / 4
"""Share of the overlap: what lies deeper in a tile does not go on in the next one, whatever that says."""


@dataclass(frozen=True, eq=False, slots=True)
class Instance:
    """One thing of a class, and the pixels that it covers.

    Attributes:
        window: the smallest rectangle of the grid that holds its pixels.
        runs: (R,) uint32, lengths of the runs of equal pixels of the window, row by row; the first is of pixels outside, maybe 0 long.
        class_id: of the legend.
        score: how sure the model is, 0 to 1.
    """

    window: Window
    runs: NDArray[np.uint32]
    class_id: int
    score: float

    @classmethod
    def of(cls, mask: NDArray[np.bool_], row: int, col: int, class_id: int, score: float) -> Instance | None:
        """The instance that covers the true pixels of a mask; None if there are none.

        Args:
            mask: (h, w) bool, any part of the grid.
            row: of the grid, where the mask begins.
            col: of the grid, where the mask begins.
            class_id: of the legend.
            score: 0 to 1.
        """
        rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return None
        inside = mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        changes = np.flatnonzero(np.diff(inside.ravel(), prepend=False))
        runs = np.diff(changes, prepend=0, append=inside.size).astype(np.uint32)
        return cls(Window(row + int(rows[0]), col + int(cols[0]), *inside.shape), runs, class_id, score)

    def shift(self, rows: int, cols: int) -> Instance:
        """The same instance, moved."""
        return replace(self, window=self.window.shift(rows, cols))

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.runs[1::2].sum())

    def mask(self, window: Window | None = None) -> NDArray[np.bool_]:
        """Which pixels of a window it covers, (h, w) bool; of its own window, if none is given."""
        own = np.repeat(np.arange(len(self.runs)) % 2 == 1, self.runs).reshape(self.window.shape)
        if window is None:
            return own
        mask, shared = np.zeros(window.shape, bool), self.window & window
        if shared is not None:
            mask[shared.within(window)] = own[shared.within(self.window)]
        return mask


@dataclass(frozen=True, eq=False, slots=True)
class View:
    """An instance, or a part of one, as one tile shows it.

    Attributes:
        seen: what the tile shows of the grid.
        instance: the pixels found in it.
    """

    seen: Window
    instance: Instance


def merge(views: Iterable[View], tiles: Iterable[Window], grid: Window, overlap: int) -> list[Instance]:
    """Make of the views of all tiles the instances of the grid, each of them once.

    - A tile has a rim where the grid goes on behind its side. What a tile shows in its rim alone is left to the neighbour. How far
      something stays clear of these sides is its *depth* in a tile.
    - Two views of different tiles and the same class *agree* if they share half of what they cover together where both tiles
      look (IoU), or half of the smaller one (IoS), unless each of them agrees better with another view of the other's tile.
    - A view is left out if another tile shows its place deeper, clear of the rim, and no view there agrees: that tile sees more of what
      is around, and saw nothing.
    - A view that stays clear of the rim is *whole*, unless a view that agrees reaches out of its tile and it lies no deeper than a quarter
      of the overlap. Whole views are taken, the deepest first; each stands for all views that agree with it.
    - What is left was cut in every tile that shows it. Such parts are united with those that agree, however many there are, and have the
      mean score, weighted by area.

    So an instance no larger than three quarters of the overlap is whole in some tile; a larger one may be made of parts. One smaller than
    half the overlap is the answer of the tile in which it lies deepest, and that tile shows at least ``(overlap - size) / 2`` pixels
    around it: the answer is that of the whole grid, if the network's answer does not depend on what is farther away. The result does not
    depend on the order of the views. Views of one tile are never compared: that they are different instances is the network's answer.

    Args:
        views: of all tiles.
        tiles: what each tile shows, also those without a view; any two neighbours share at least ``overlap`` pixels.
        grid: all pixels there are.
        overlap: of neighbouring tiles, pixels.

    Returns:
        The instances in the order of their first pixel, row by row.
    """
    rim = math.ceil(overlap * RIM)
    kept = [view for view in views if _inner(view.seen, grid, rim) & view.instance.window]
    kept.sort(key=_place)
    depths = [_depth(view.instance.window, view.seen, grid) for view in kept]
    friends: list[list[int]] = [[] for _ in kept]
    for one, two in _agreeing(kept):
        friends[one].append(two)
        friends[two].append(one)
    found, gone = [], _refuted(kept, depths, friends, tiles, grid, rim)
    whole = [
        number
        for number, view in enumerate(kept)
        if depths[number] >= rim and (depths[number] > overlap * DEEP or not any(_reaches_out(kept[two], view) for two in friends[number]))
    ]
    for number in sorted(whole, key=lambda number: (-depths[number], -kept[number].instance.score, number)):
        if not gone[number]:
            found.append(kept[number].instance)
            gone[[number, *friends[number]]] = True
    for group in _components(np.flatnonzero(~gone).tolist(), friends):
        found.append(_united([kept[number].instance for number in group]))
    return sorted(found, key=_first_pixel)


def overlaps(found: Sequence[Instance], true: Sequence[Instance]) -> NDArray[np.float64]:
    """IoU of the masks of each pair, (D, G) float64."""
    result = np.zeros((len(found), len(true)))
    for one, two in zip(*_touching(found, true), strict=True):
        shared = _shared(found[one], true[two])
        result[one, two] = shared / (found[one].area + true[two].area - shared)
    return result


def pack(views: Sequence[View]) -> dict[str, NDArray[Any]]:
    """Views as arrays that `unpack` takes, ready for a file."""
    instances = [view.instance for view in views]

    def windows(each: list[Window]) -> NDArray[np.int64]:
        return np.array([(w.row, w.col, w.height, w.width) for w in each], np.int64).reshape(-1, 4)

    return {
        "seen": windows([view.seen for view in views]),
        "window": windows([instance.window for instance in instances]),
        "class_id": np.array([instance.class_id for instance in instances], np.uint8),
        "score": np.array([instance.score for instance in instances], np.float64),
        "count": np.array([len(instance.runs) for instance in instances], np.int64),
        "runs": np.concatenate([np.empty(0, np.uint32), *(instance.runs for instance in instances)]),
    }


def unpack(arrays: dict[str, NDArray[Any]]) -> list[View]:
    """The views of `pack`."""
    runs = np.split(arrays["runs"], np.cumsum(arrays["count"])[:-1])
    rows = zip(*(arrays[name].tolist() for name in ("seen", "window", "class_id", "score")), runs, strict=False)
    return [View(Window(*seen), Instance(Window(*window), own, class_id, score)) for seen, window, class_id, score, own in rows]


def _place(view: View) -> tuple[Any, ...]:
    """What tells views apart: two of equal place are equal."""
    instance = view.instance
    return view.seen, instance.window, instance.class_id, -instance.score, instance.runs.tobytes()


def _first_pixel(instance: Instance) -> tuple[Any, ...]:
    return instance.window.row, instance.window.col + int(instance.runs[0]), instance.class_id, instance.window, -instance.score


def _inner(seen: Window, grid: Window, rim: int) -> Window:
    """What a tile shows without its rim."""
    top, left = (0 if begin == edge else rim for begin, edge in ((seen.row, grid.row), (seen.col, grid.col)))
    bottom, right = (0 if end >= edge else rim for end, edge in ((seen.end_row, grid.end_row), (seen.end_col, grid.end_col)))
    return Window.between(seen.row + top, seen.col + left, seen.end_row - bottom, seen.end_col - right)


def _depth(own: Window, seen: Window, grid: Window) -> float:
    """Pixels between a window and the nearest side of a tile behind which the grid goes on; less than 0 if it reaches out there."""
    sides = (
        (seen.row > grid.row, own.row - seen.row),
        (seen.col > grid.col, own.col - seen.col),
        (seen.end_row < grid.end_row, seen.end_row - own.end_row),
        (seen.end_col < grid.end_col, seen.end_col - own.end_col),
    )
    return min((pixels for goes_on, pixels in sides if goes_on), default=math.inf)


def _reaches_out(one: View, two: View) -> bool:
    """Whether a view shows pixels that the tile of another does not."""
    return not two.seen.contains(one.instance.window)


def _agreeing(views: Sequence[View]) -> list[tuple[int, int]]:
    """Pairs of numbers of views that agree, the lower number first."""
    instances = [view.instance for view in views]
    shares: dict[tuple[int, int], float] = {}
    best: dict[tuple[int, Window], float] = {}
    for one, two in np.transpose(_touching(instances, instances)).tolist():
        first, second = views[one], views[two]
        if one < two and first.seen != second.seen and first.instance.class_id == second.instance.class_id:
            share = _agreement(first, second)
            if share:
                shares[one, two] = share
                for key in ((one, second.seen), (two, first.seen)):
                    best[key] = max(best.get(key, 0.0), share)
    return [(one, two) for (one, two), share in shares.items() if share >= min(best[one, views[two].seen], best[two, views[one].seen])]


def _agreement(one: View, two: View) -> float:
    """IoU of two views where both tiles look; 0 if they do not agree."""
    shared = _shared(one.instance, two.instance)
    if not shared:
        return 0.0
    both = one.seen & two.seen
    assert both is not None  # they share pixels
    together = sum(int(view.instance.mask(both).sum()) for view in (one, two)) - shared
    agree = shared >= AGREE * together or shared >= AGREE * min(one.instance.area, two.instance.area)
    return shared / together if agree else 0.0


def _refuted(
    views: Sequence[View], depths: Sequence[float], friends: Sequence[Sequence[int]], tiles: Iterable[Window], grid: Window, rim: int
) -> NDArray[np.bool_]:
    """Which views lie deeper in a tile that shows none which agrees, (V,) bool."""
    shown, refuted = sorted(set(tiles)), np.zeros(len(views), bool)
    if not (views and shown):
        return refuted
    pairs = shapely.STRtree(_boxes(shown)).query(_boxes([view.instance.window for view in views]), predicate="within")
    for number, tile in pairs.T.tolist():
        if _depth(views[number].instance.window, shown[tile], grid) > max(depths[number], rim - 1):
            refuted[number] |= not any(views[friend].seen == shown[tile] for friend in friends[number])
    return refuted


def _touching(one: Sequence[Instance], two: Sequence[Instance]) -> NDArray[np.int64]:
    """Numbers (2, P) of the pairs whose windows share a pixel."""
    if not (one and two):
        return np.empty((2, 0), np.int64)
    first, second = (_boxes([each.window for each in instances]) for instances in (one, two))
    pairs: NDArray[np.int64] = shapely.STRtree(second).query(first)
    return pairs


def _boxes(windows: Sequence[Window]) -> NDArray[np.object_]:
    """Windows as boxes, a little smaller, so that neighbours do not touch."""
    left, top, right, bottom = np.array([(w.col, w.row, w.end_col, w.end_row) for w in windows]).T
    boxes: NDArray[np.object_] = shapely.box(left + 0.1, top + 0.1, right - 0.1, bottom - 0.1)
    return boxes


def _shared(one: Instance, two: Instance) -> int:
    """Number of pixels in both."""
    common = one.window & two.window
    return 0 if common is None else int((one.mask()[common.within(one.window)] & two.mask()[common.within(two.window)]).sum())


def _components(numbers: Sequence[int], friends: Sequence[Sequence[int]]) -> Iterable[list[int]]:
    """Groups of the numbers that are friends of friends."""
    waiting = set(numbers)
    for number in numbers:
        if number in waiting:
            waiting.remove(number)
            group = [number]
            for member in group:
                near = [friend for friend in friends[member] if friend in waiting]
                waiting.difference_update(near)
                group.extend(near)
            yield sorted(group)


def _united(parts: Sequence[Instance]) -> Instance:
    """All pixels of the parts."""
    if len(parts) == 1:
        return parts[0]
    windows = [part.window for part in parts]
    hull = Window.between(
        min(w.row for w in windows), min(w.col for w in windows), max(w.end_row for w in windows), max(w.end_col for w in windows)
    )
    mask = np.zeros(hull.shape, bool)
    for part in parts:
        mask[part.window.within(hull)] |= part.mask()
    areas = np.array([part.area for part in parts])
    score = float(areas @ np.array([part.score for part in parts]) / areas.sum())
    whole = Instance.of(mask, hull.row, hull.col, parts[0].class_id, score)
    assert whole is not None  # parts are not empty
    return whole
