"""Whatever the tiles, each instance comes once: a fake network answers what lies in its tile."""

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


def test_of_two_whole_ones_the_surer_wins() -> None:
    found = merge([seen_by(LEFT, 70, 85, 0.6), seen_by(RIGHT, 70, 86, 0.7)], BOTH, GRID, 40)
    assert columns(found) == [(70, 86)]


def test_parts_of_a_large_one_are_united_with_their_mean_score() -> None:
    found = merge([seen_by(LEFT, 10, 100, 0.6), seen_by(RIGHT, 60, 150, 0.8)], BOTH, GRID, 40)
    assert columns(found) == [(10, 150)]
    assert found[0].score == pytest.approx(0.7)


def test_a_view_that_ends_too_early_is_a_part() -> None:
    found = merge([seen_by(LEFT, 10, 90, 0.99), seen_by(RIGHT, 60, 150, 0.8)], BOTH, GRID, 40)
    assert columns(found) == [(10, 150)]


def test_what_one_tile_takes_for_one_and_its_neighbour_for_two_does_not_come_thrice() -> None:
    one, two, both = (seen_by(LEFT, *span) for span in ((62, 72, 0.8), (72, 82, 0.7), (0, 1, 0)))
    both = seen_by(RIGHT, 66, 82, 0.9)
    assert columns(merge([one, two, both], BOTH, GRID, 40)) == [(66, 82)]
    both = seen_by(RIGHT, 66, 82, 0.75)
    assert columns(merge([one, two, both], BOTH, GRID, 40)) == [(62, 72), (72, 82)]


def test_neighbours_of_another_class_or_place_stay() -> None:
    other = Instance.of(np.ones((20, 10), bool), 20, 70, 2, 0.9)
    assert other is not None
    assert len(merge([seen_by(LEFT, 70, 80, 0.9), View(RIGHT, other)], BOTH, GRID, 40)) == 2
    assert len(merge([seen_by(LEFT, 65, 75, 0.9), seen_by(RIGHT, 75, 85, 0.9)], BOTH, GRID, 40)) == 2


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
