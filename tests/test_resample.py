"""Averages and cubics against plain numpy and GDAL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from geoseg.resample import covered, resample, taps
from tests.conftest import make_scene

lengths = st.integers(1, 80)


def weights(source: int, target: int) -> np.ndarray:
    """``(target, source)`` matrix of the taps."""
    axis = taps(source, target, 0, target)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target)[:, None], axis.index), axis.weight)
    return matrix


def whole(pixels: np.ndarray, valid: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return resample(pixels, valid, *(taps(n, m, 0, m) for n, m in zip(valid.shape, shape, strict=True)))


@given(lengths, lengths)
def test_weights_add_up_to_one(source: int, target: int) -> None:
    matrix = weights(source, target)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    if target <= source:
        np.testing.assert_allclose(matrix.sum(axis=0), target / source, atol=1e-12)
        assert (matrix >= 0).all()


@given(lengths, lengths, st.data())
def test_taps_do_not_depend_on_the_piece(source: int, target: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, target - 1))
    stop = data.draw(st.integers(start + 1, target))
    piece, all_of_it = taps(source, target, start, stop), taps(source, target, 0, target)
    for name in ("index", "weight", "core"):
        np.testing.assert_array_equal(getattr(piece, name), getattr(all_of_it, name)[start:stop])
    assert 0 <= piece.span[0] < piece.span[1] <= source


@given(lengths, lengths)
def test_every_source_pixel_lies_in_a_target_pixel_it_makes_valid(source: int, target: int) -> None:
    rows, cols = taps(source, target, 0, target), taps(1, 1, 0, 1)
    for one in range(source):
        valid = np.zeros((source, 1), bool)
        valid[one] = True
        made = covered(valid, rows, cols)[:, 0]
        assert made[min(int((one + 0.5) * target / source), target - 1)]
        centres = (np.flatnonzero(made) + 0.5) * source / target
        assert (np.abs(centres - (one + 0.5)) <= max(0.5, source / target)).all(), "and in none far away"


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(0, 9), st.sampled_from(["uint8", "float32", "int16"]))
def test_whole_factors_are_block_means_of_what_is_valid(rows: int, cols: int, factor: int, seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 120, (2, rows * factor, cols * factor)).astype(dtype)
    valid = rng.random(pixels.shape[1:]) < 0.6
    made, kept = whole(pixels, valid, (rows, cols))
    blocks = np.where(valid, pixels, np.nan).reshape(2, rows, factor, cols, factor).swapaxes(2, 3).reshape(2, rows, cols, -1)
    np.testing.assert_array_equal(kept, np.isfinite(blocks).any(axis=(0, 3)))
    mean = np.nansum(blocks, axis=3) / np.maximum(np.isfinite(blocks).sum(axis=3), 1)
    np.testing.assert_allclose(made, mean, atol=0.5 if dtype != "float32" else 1e-4)
    assert (made[:, ~kept] == 0).all()


@given(lengths, lengths, lengths, lengths, st.integers(0, 9))
def test_what_is_not_valid_adds_nothing(height: int, width: int, new_height: int, new_width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.random((3, height, width), dtype=np.float32)
    valid = rng.random((height, width)) < rng.random()
    spoilt = np.where(valid, pixels, rng.choice([np.nan, np.inf, -1e30, 1e30], valid.shape)).astype(np.float32)
    made, kept = whole(spoilt, valid, (new_height, new_width))
    np.testing.assert_array_equal(made, whole(pixels, valid, (new_height, new_width))[0])
    assert np.isfinite(made).all()
    assert (made[:, kept] > -0.6).all()
    assert (made[:, kept] < 1.6).all()


@given(lengths, lengths, lengths, lengths, st.sampled_from([0, 7, 255]), st.integers(0, 9))
def test_an_even_scene_stays_even(height: int, width: int, new_height: int, new_width: int, value: int, seed: int) -> None:
    valid = np.random.default_rng(seed).random((height, width)) < 0.9
    made, kept = whole(np.full((1, height, width), value, np.uint8), valid, (new_height, new_width))
    assert (made[0][kept] == value).all()


def test_overshoot_is_cut_at_the_range_of_the_type() -> None:
    edge = np.zeros((1, 8, 8), np.uint8)
    edge[:, :, 4:] = 255
    made, _ = whole(edge, np.ones((8, 8), bool), (8, 32))
    assert made.min() == 0
    assert made.max() == 255
    assert (np.diff(made[0, 4].astype(int))[10:20] >= 0).all()


@pytest.mark.parametrize(
    ("shape", "method"), [((40, 30), Resampling.average), ((53, 41), Resampling.average), ((211, 173), Resampling.cubic)]
)
def test_gdal_agrees(tmp_path: Path, shape: tuple[int, int], method: Resampling) -> None:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (3, 120, 90), dtype=np.uint8)
    path = make_scene(tmp_path / "s.tif", pixels)
    with rasterio.open(path) as file:
        place = Affine(0.1 * 90 / shape[1], 0, file.transform.c, 0, -0.1 * 120 / shape[0], file.transform.f)
        with WarpedVRT(file, transform=place, height=shape[0], width=shape[1], crs=file.crs, resampling=method) as view:
            expected = view.read()
    made, kept = whole(pixels, np.ones((120, 90), bool), shape)
    assert kept.all()
    inner = (slice(None), slice(5, -5), slice(5, -5))
    assert np.abs(made[inner].astype(int) - expected[inner]).max() <= 1
