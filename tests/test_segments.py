"""Errors of regions against sums over all pairs, another library, and what topology is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import euler_number
from skimage.metrics import adapted_rand_error

from geoseg.segments import errors, rand_error, warp

Mask = NDArray[np.bool_]


@st.composite
def maps(draw: st.DrawFn) -> tuple[Mask, Mask]:
    """Two maps of blobs that are alike."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
    smooth = draw(st.sampled_from([0, 0.7, 1.5]))
    one, other = (ndimage.gaussian_filter(rng.normal(size=shape), smooth) for _ in range(2))
    part = draw(st.floats(0, 1))
    return one > 0, (1 - part) * one + part * other > 0


@given(maps())
def test_the_rand_error_is_that_of_all_pairs(pair: tuple[Mask, Mask]) -> None:
    found, true = pair
    ours, theirs = (ndimage.label(each)[0][true] for each in pair)
    same_ours = (ours[:, None] == ours) & (ours[:, None] > 0)
    same_theirs = theirs[:, None] == theirs
    for same in (same_ours, same_theirs):
        np.fill_diagonal(same, val=False)
    either = same_ours.sum() + same_theirs.sum()
    expected = 1 - 2 * (same_ours & same_theirs).sum() / either if either else np.nan
    np.testing.assert_allclose(rand_error(found, true), expected)


@given(maps())
def test_the_rand_error_is_scikit_images_where_borders_are_pixels_apart(pair: tuple[Mask, Mask]) -> None:
    found, true = pair
    ours, count = ndimage.label(found)
    alone = ours.copy()
    alone[~found] = count + 1 + np.arange((~found).sum())
    if np.isfinite(expected := rand_error(found, true)):
        with np.errstate(invalid="ignore"):
            theirs = adapted_rand_error(ndimage.label(true)[0], alone)[0]
        assert theirs == pytest.approx(expected)


def topology(inside: Mask) -> tuple[int, int]:
    """Regions that hang together by sides, and their Euler number, from another library."""
    padded = np.pad(inside, 1)
    return ndimage.label(padded)[1], int(euler_number(padded, connectivity=1))


@given(maps())
def test_a_warp_keeps_the_topology_of_the_truth_and_comes_nearer(pair: tuple[Mask, Mask]) -> None:
    found, true = pair
    warped = warp(true, found)
    assert topology(warped) == topology(true)
    assert not ((warped != true) & (warped == true)).any()
    assert not ((warped != found) & (true == found)).any()


@given(maps())
def test_what_one_pixel_could_still_turn_would_change_the_topology(pair: tuple[Mask, Mask]) -> None:
    found, true = pair
    warped = warp(true, found)
    for row, col in np.argwhere(warped != found)[:20]:
        turned = warped.copy()
        turned[row, col] ^= True
        assert topology(turned) != topology(warped) or _splits(warped, row, col)


def _splits(inside: Mask, row: int, col: int) -> bool:
    """Whether around a pixel there is more than one piece of region or of border, which may hang together farther away."""
    around = np.pad(inside, 1)[row : row + 3, col : col + 3].copy()
    outside = ~around
    outside[1, 1] = around[1, 1] = False
    pieces = ndimage.label(around)[0]
    beside = set(pieces[[0, 1, 1, 2], [1, 0, 2, 1]].tolist()) - {0}
    return len(beside) != 1 or ndimage.label(outside, np.ones((3, 3)))[1] != 1


def test_moved_borders_are_no_mistake_of_topology_and_gaps_are() -> None:
    true = np.ones((40, 60), bool)
    true[:, 20] = true[:, 40] = False
    moved = np.ones((40, 60), bool)
    moved[:, 21] = moved[:, 39] = False
    known = np.ones((40, 60), bool)
    shifted = errors(moved, true, known)
    assert shifted.pixel_error == pytest.approx(4 * 40 / 2400)
    assert shifted.warping_error == 0
    assert 0 < shifted.rand_error < 0.2
    gap = true.copy()
    gap[10, 20] = True
    merged = errors(gap, true, known)
    assert merged.pixel_error == merged.warping_error == pytest.approx(1 / 2400)
    assert merged.rand_error > 0.2
    split = true.copy()
    split[:, 30] = False
    assert errors(split, true, known).warping_error == pytest.approx(1 / 2400)
    assert errors(true, true, known).named() == {"pixel_error": 0, "rand_error": 0, "warping_error": 0}


def test_what_is_unknown_does_not_count() -> None:
    rng = np.random.default_rng(0)
    true, known = rng.random((30, 30)) < 0.7, np.zeros((30, 30), bool)
    known[:, :15] = True
    found = np.where(known, true, ~true)
    assert errors(found, true, known).pixel_error == 0
    assert errors(found, true, known).warping_error == 0
    assert np.isnan(errors(found, true, ~known & known).rand_error)
