"""Whatever the tiles, each instance comes once: fake networks answer what lies in a tile, or see its sides, too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from geoseg.instances import Instance, View, merge, overlaps, pack, unpack
from geoseg.tiling import Tiling
from geoseg.window import Window


def painted(rng: np.random.Generator, shape: tuple[int, int], count: int, least: int, most: int) -> NDArray[np.int32]:
    """Connected things of any size, numbered from 1; many touch each other, none covers another."""
    scene, number = np.zeros(shape, np.int32), 0
    for _ in range(count):
        size = np.minimum(rng.integers(least, most + 1, 2), shape)
        corner = [int(rng.integers(0, full - part + 1)) for full, part in zip(shape, size, strict=True)]
        rows, cols = np.ogrid[: size[0], : size[1]]
        thing = np.ones(size, bool)
        kind = rng.integers(4)
        if kind == 0:
            middle = (size - 1) / 2
            thing = ((rows - middle[0]) / (size[0] / 2)) ** 2 + ((cols - middle[1]) / (size[1] / 2)) ** 2 <= 1
        elif kind == 1 and min(size) >= 3 * least // 2:
            thing[least // 2 :, least // 2 :] = False  # L
        elif kind == 2 and size[1] >= 3 * least // 2:
            thing[least // 2 :, least // 2 : -(least // 2)] = False  # U
        place = scene[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
        if not place[thing].any():
            number += 1
            place[thing] = number
    return scene


def truth(scene: NDArray[np.int32], classes: int = 2) -> list[Instance]:
    numbers = range(1, scene.max() + 1)
    return [one for number in numbers if (one := Instance.of(scene == number, 0, 0, number % classes + 1, 0.9))]


class FakeNetwork:
    """Answers what it sees in a tile; ``noise`` makes of a mask another one."""

    def __init__(self, scene: NDArray[np.int32], noise=lambda mask: mask, *, split: bool = False, classes: int = 2) -> None:
        self.scene, self.noise, self.split, self.classes = scene, noise, split, classes
        self.scores = np.random.default_rng(0)

    def __call__(self, seen: Window) -> list[View]:
        shown = self.scene[seen.within(Window.of(self.scene.shape))]
        views = []
        for number in np.unique(shown[shown > 0]).tolist():
            pieces, count = ndimage.label(shown == number) if self.split else ((shown == number).astype(int), 1)
            for piece in range(1, count + 1):
                score = float(self.scores.uniform(0.5, 1))
                one = Instance.of(self.noise(pieces == piece), seen.row, seen.col, number % self.classes + 1, score)
                views += [View(seen, one)] if one else []
        return views


def tiles(tiling: Tiling) -> list[Window]:
    return sorted({tile.seen for tile in tiling.tiles(Window(0, 0, tiling.height, tiling.width))})


def tilings(height: int, width: int) -> st.SearchStrategy[Tiling]:
    return st.integers(2, 6).flatmap(
        lambda eighths: st.builds(Tiling, st.just(height), st.just(width), st.integers(16 * eighths, 200), st.just(8 * eighths))
    )


def facts(instances: list[Instance]) -> list[tuple]:
    return [(one.window, one.class_id, one.runs.tolist()) for one in instances]


@settings(max_examples=80)
@given(st.integers(0, 2**32 - 1), st.integers(40, 320), st.integers(40, 320), st.booleans(), st.data())
def test_exact_views_give_back_every_instance_exactly(seed: int, height: int, width: int, split: bool, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    scene = painted(rng, (height, width), 25, 4, int(rng.integers(5, 250)))
    tiling = data.draw(tilings(height, width))
    network = FakeNetwork(scene, split=split)
    views = [view for seen in tiles(tiling) for view in network(seen)]
    found = merge(views, tiles(tiling), Window.of(scene.shape), tiling.overlap)
    assert sorted(facts(found)) == sorted(facts(truth(scene)))
    assert [one.window.row for one in found] == sorted(one.window.row for one in found)
    rng.shuffle(views)
    again = merge(views, tiles(tiling), Window.of(scene.shape), tiling.overlap)
    assert facts(again) == facts(found)
    assert [one.score for one in again] == [one.score for one in found]


def frayed(rng: np.random.Generator, share: float):
    """A mask whose pixels along the boundary change sides by chance."""

    def noise(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        edge = ndimage.binary_dilation(mask) & ~ndimage.binary_erosion(mask, border_value=1)
        return mask ^ (edge & (rng.random(mask.shape) < share))

    return noise


def moved(rng: np.random.Generator):
    """A mask moved, grown or shrunk by a pixel."""

    def noise(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        kind = rng.integers(4)
        if kind == 0:
            return ndimage.binary_dilation(mask)
        if kind == 1:
            return ndimage.binary_erosion(mask, border_value=1)
        return ndimage.shift(mask, rng.integers(-1, 2, 2), order=0, mode="nearest")

    return noise


@settings(max_examples=80)
@given(st.integers(0, 2**32 - 1), st.integers(60, 320), st.integers(60, 320), st.data())
def test_frayed_views_give_every_instance_once(seed: int, height: int, width: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    scene = painted(rng, (height, width), 20, 32, int(rng.integers(33, 250)))
    tiling = data.draw(tilings(height, width).filter(lambda tiling: tiling.overlap >= 32))
    network = FakeNetwork(scene, frayed(rng, 0.1))
    untiled = [view.instance for view in network(Window.of(scene.shape))]
    found = merge([view for seen in tiles(tiling) for view in network(seen)], tiles(tiling), Window.of(scene.shape), tiling.overlap)
    iou = overlaps(found, untiled)
    assert len(found) == len(untiled)
    assert (iou.max(axis=0, initial=1) >= 0.9).all()
    assert ((iou >= 0.5).sum(axis=0) == 1).all()


@settings(max_examples=80)
@given(st.integers(0, 2**32 - 1), st.integers(60, 320), st.integers(60, 320), st.data())
def test_moved_views_give_every_instance_once(seed: int, height: int, width: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    scene = painted(rng, (height, width), 20, 20, int(rng.integers(21, 250)))
    tiling = data.draw(tilings(height, width).filter(lambda tiling: tiling.overlap >= 32))
    network = FakeNetwork(scene, moved(rng))
    found = merge([view for seen in tiles(tiling) for view in network(seen)], tiles(tiling), Window.of(scene.shape), tiling.overlap)
    iou = overlaps(found, truth(scene))
    assert len(found) == scene.max()
    assert ((iou >= 0.5).sum(axis=0) == 1).all()


class Contrasting:
    """Like a convolutional network: what it says of a pixel depends on the pixels up to ``reach`` away, with zeros outside of its tile.

    It finds what is brighter than its surroundings. At the sides of a tile these are darker, so that there things grow, melt together,
    are surer, and appear from nowhere.
    """

    def __init__(self, scene: NDArray[np.int64], reach: int) -> None:
        self.scene, self.side = scene, 2 * reach + 1

    def __call__(self, seen: Window) -> list[View]:
        shown = self.scene[seen.within(Window.of(self.scene.shape))]
        sums = np.pad(np.pad(shown, self.side // 2).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        around = sums[self.side :, self.side :] - sums[: -self.side, self.side :] - sums[self.side :, : -self.side]
        contrast = shown - (around + sums[: -self.side, : -self.side]) / (2 * self.side**2)
        pieces, count = ndimage.label(contrast > 90)
        views = []
        for piece in range(1, count + 1):
            score = min(1.0, float(contrast[pieces == piece].max()) / 200)
            one = Instance.of(pieces == piece, seen.row, seen.col, 1, score)
            views += [View(seen, one)] if one else []
        return views


def hills(rng: np.random.Generator, shape: tuple[int, int], count: int) -> NDArray[np.int64]:
    """Soft bright hills on a plain, some of them too low to be found."""
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    scene = np.full(shape, 100.0)
    for _ in range(count):
        row, col, height, width = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), *rng.uniform(4, 12, 2)
        peak = rng.choice([25, 40, 100, 140])
        scene = np.maximum(scene, 100 + peak * np.clip(1.6 - np.hypot((rows - row) / height, (cols - col) / width), 0, 1))
    return np.rint(scene).astype(np.int64)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(150, 340), st.integers(150, 340), st.integers(1, 9), st.integers(0, 60), st.integers(0, 90))
def test_a_network_that_looks_no_farther_than_the_overlap_allows_gives_the_untiled_answer(
    seed: int, height: int, width: int, reach: int, more: int, wider: int
) -> None:
    rng = np.random.default_rng(seed)
    network, whole = Contrasting(hills(rng, (height, width), 18), reach), Window(0, 0, height, width)
    untiled = [view.instance for view in network(whole)]
    largest = max((max(one.window.shape) for one in untiled), default=1)
    overlap = max(2 * largest + 1, largest + 2 * reach) + more
    tiling = Tiling(height, width, 2 * overlap + wider, overlap)
    views = [view for seen in tiles(tiling) for view in network(seen)]
    found = merge(views, tiles(tiling), whole, overlap)
    assert sorted(facts(found)) == sorted(facts(untiled))
    assert sorted(one.score for one in found) == sorted(one.score for one in untiled)


def test_at_the_sides_of_its_tiles_that_network_errs() -> None:
    """Else the test before would show nothing."""
    network = Contrasting(hills(np.random.default_rng(0), (200, 300), 30), 8)
    untiled, tiling = facts([view.instance for view in network(Window(0, 0, 200, 300))]), Tiling(200, 300, 120, 60)
    views = [view for seen in tiles(tiling) for view in network(seen)]
    assert sum(one not in untiled for one in facts([view.instance for view in views])) > 10
    surer = sorted((view.instance for view in views), key=lambda one: -one.score)[:10]
    assert any(one not in untiled for one in facts(surer))


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(80, 300), st.integers(80, 300), st.integers(0, 40), st.integers(0, 90))
def test_things_that_cover_each_other_are_told_apart(seed: int, height: int, width: int, more: int, wider: int) -> None:
    """Boxes of one class, some inside others, as masks of a network may be."""
    rng = np.random.default_rng(seed)
    things: dict[tuple, Instance] = {}
    for _ in range(25):
        size = rng.integers(4, 31, 2)
        row, col = (int(rng.integers(0, full - part + 1)) for full, part in zip((height, width), size, strict=True))
        one = Instance.of(np.ones(size, bool), row, col, 1, float(rng.uniform(0.5, 1)))
        assert one is not None
        things[facts([one])[0][:1]] = one
    overlap = 61 + more
    tiling = Tiling(height, width, 2 * overlap + wider, overlap)
    views = []
    for seen in tiles(tiling):
        for one in things.values():
            shared = one.window & seen
            part = None if shared is None else Instance.of(one.mask(shared), shared.row, shared.col, 1, one.score)
            views += [View(seen, part)] if part else []
    found = merge(views, tiles(tiling), Window(0, 0, height, width), overlap)
    assert sorted(facts(found)) == sorted(facts(list(things.values())))


LEFT, RIGHT, GRID = Window(0, 0, 100, 100), Window(0, 60, 100, 100), Window(0, 0, 100, 160)
BOTH = (LEFT, RIGHT)


def seen_by(tile: Window, left: int, right: int, score: float, top: int = 20, bottom: int = 40) -> View:
    mask = np.ones((bottom - top, right - left), bool)
    one = Instance.of(mask, top, left, 1, score)
    assert one is not None
    return View(tile, one)


def columns(instances: list[Instance]) -> list[tuple[int, int]]:
    return [(one.window.col, one.window.end_col) for one in instances]


def test_the_tile_that_sees_it_whole_wins_over_a_surer_part() -> None:
    found = merge([seen_by(LEFT, 30, 80, 0.6), seen_by(RIGHT, 60, 81, 0.99)], BOTH, GRID, 40)
    assert columns(found) == [(30, 80)]
    assert found[0].score == 0.6


def test_of_two_whole_ones_the_deeper_wins_and_of_two_equally_deep_ones_the_surer() -> None:
    assert columns(merge([seen_by(LEFT, 70, 86, 0.6), seen_by(RIGHT, 70, 85, 0.7)], BOTH, GRID, 40)) == [(70, 86)]
    assert columns(merge([seen_by(LEFT, 70, 90, 0.6), seen_by(RIGHT, 70, 89, 0.7)], BOTH, GRID, 40)) == [(70, 89)]


def test_parts_of_a_large_one_are_united_with_their_mean_score() -> None:
    found = merge([seen_by(LEFT, 10, 100, 0.6), seen_by(RIGHT, 60, 150, 0.8)], BOTH, GRID, 40)
    assert columns(found) == [(10, 150)]
    assert found[0].score == pytest.approx(0.7)


def test_a_view_that_ends_too_early_is_a_part() -> None:
    found = merge([seen_by(LEFT, 10, 90, 0.99), seen_by(RIGHT, 60, 150, 0.8)], BOTH, GRID, 40)
    assert columns(found) == [(10, 150)]


def test_what_one_tile_takes_for_one_and_its_neighbour_for_two_does_not_come_thrice() -> None:
    one, two, both = seen_by(LEFT, 78, 86, 0.9), seen_by(LEFT, 86, 94, 0.8), seen_by(RIGHT, 78, 94, 0.6)
    assert columns(merge([one, two, both], BOTH, GRID, 40)) == [(78, 94)]
    one, two, both = seen_by(LEFT, 66, 74, 0.6), seen_by(LEFT, 74, 82, 0.6), seen_by(RIGHT, 66, 82, 0.9)
    assert columns(merge([one, two, both], BOTH, GRID, 40)) == [(66, 74), (74, 82)]


def test_the_tile_that_shows_a_place_deeper_decides_whether_something_is_there_and_what() -> None:
    house, car = seen_by(LEFT, 70, 80, 0.6), Instance.of(np.ones((20, 10), bool), 20, 70, 2, 0.9)
    assert car is not None
    assert [one.class_id for one in merge([house, View(RIGHT, car)], BOTH, GRID, 40)] == [1]
    assert merge([View(RIGHT, car)], BOTH, GRID, 40) == []
    assert [one.class_id for one in merge([house, View(LEFT, car)], BOTH, GRID, 40)] == [1, 2]
    assert columns(merge([seen_by(LEFT, 65, 75, 0.9), seen_by(RIGHT, 75, 85, 0.9)], BOTH, GRID, 40)) == [(65, 75), (75, 85)]


def test_what_lies_deep_in_a_tile_does_not_go_on_in_the_next_one() -> None:
    deep, melted = seen_by(LEFT, 70, 89, 0.6), seen_by(RIGHT, 60, 110, 0.9)
    assert columns(merge([deep, melted], BOTH, GRID, 40)) == [(70, 89)]
    assert columns(merge([seen_by(LEFT, 70, 91, 0.6), melted], BOTH, GRID, 40)) == [(60, 110)]


def test_a_part_that_the_tile_which_sees_more_does_not_find_is_left_out() -> None:
    part, other = seen_by(RIGHT, 60, 80, 0.9), Instance.of(np.ones((20, 50), bool), 20, 30, 2, 0.8)
    assert other is not None
    house = View(LEFT, other)
    assert [one.class_id for one in merge([part, house], BOTH, GRID, 40)] == [2]
    assert merge([part], BOTH, GRID, 40) == []
    assert len(merge([part], [RIGHT], GRID, 40)) == 1
    assert columns(merge([seen_by(RIGHT, 60, 110, 0.9)], BOTH, GRID, 40)) == [(60, 110)]


def test_what_a_rim_alone_shows_is_the_neighbours() -> None:
    assert merge([seen_by(LEFT, 96, 100, 0.9)], BOTH, GRID, 40) == []
    assert columns(merge([seen_by(RIGHT, 156, 160, 0.9)], BOTH, GRID, 40)) == [(156, 160)]


@given(st.lists(st.booleans(), min_size=1, max_size=80), st.integers(1, 9), st.integers(-5, 5), st.integers(-5, 5))
def test_an_instance_is_its_mask(bits: list[bool], width: int, row: int, col: int) -> None:
    mask = np.resize(np.array(bits), (-(-len(bits) // width), width))
    one = Instance.of(mask, row, col, 3, 0.5)
    if not mask.any():
        assert one is None
        return
    assert one is not None
    assert one.area == mask.sum()
    np.testing.assert_array_equal(one.mask(Window(row, col, *mask.shape)), mask)
    own = one.mask()
    assert own.shape == one.window.shape
    assert own[0].any() and own[-1].any() and own[:, 0].any() and own[:, -1].any()
    assert not one.mask(Window(row + 100, col, 2, 2)).any()
    (back,) = unpack(pack([View(Window(0, 0, 9, 9), one)]))
    assert (back.seen, back.instance.score) == (Window(0, 0, 9, 9), 0.5)
    assert facts([back.instance]) == facts([one])


def test_nothing_is_nothing() -> None:
    assert merge([], BOTH, GRID, 40) == []
    assert unpack(pack([])) == []
    assert overlaps([], []).shape == (0, 0)


@given(st.integers(0, 2**32 - 1))
def test_overlaps_are_those_of_the_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, two = (truth(painted(rng, (60, 60), 6, 4, 30)) for _ in range(2))
    whole = Window(0, 0, 60, 60)
    expected = [[(a.mask(whole) & b.mask(whole)).sum() / (a.mask(whole) | b.mask(whole)).sum() for b in two] for a in one]
    np.testing.assert_allclose(overlaps(one, two), expected)
