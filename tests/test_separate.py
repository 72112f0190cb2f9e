"""Masks come back from their polygons, one face each, whatever they overlap."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.errors import OptionsError
from geoseg.legend import Legend, LegendClass
from geoseg.polygons import Mask, Shaping, outlines
from geoseg.window import Window

SHAPE = (60, 70)
LEGEND = Legend(
    name="things",
    classes=(
        LegendClass(id=4, name="house", title="House", colour="#aa0000"),
        LegendClass(id=255, name="car", title="Car", colour="#00aa00"),
    ),
)


def masks(seed: int, count: int) -> list[Mask]:
    rng, found = np.random.default_rng(seed), []
    for number in range(count):
        size = rng.integers(1, 20, 2)
        inside = rng.random(size) < rng.choice([0.5, 0.9, 1.0])
        inside[rng.integers(size[0]), rng.integers(size[1])] = True
        row, col = (int(rng.integers(0, full - part + 1)) for full, part in zip(SHAPE, size, strict=True))
        found.append(Mask(Window(row, col, *inside.shape), inside, (4, 255)[number % 2], float(rng.random())))
    return found


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(0, 8))
def test_rasterised_they_are_the_masks(seed: int, count: int) -> None:
    given_masks = masks(seed, count)
    faces = outlines(given_masks, SHAPE)
    assert len(faces) == count
    drawn = faces.polygons()
    assert shapely.is_valid(drawn).all()
    for number, mask in enumerate(given_masks):
        expected = np.zeros(SHAPE, bool)
        expected[mask.window.within(Window.of(SHAPE))] = mask.inside
        np.testing.assert_array_equal(rasterio.features.rasterize([drawn[number]], SHAPE).astype(bool), expected)
        rows, cols = np.nonzero(expected)
        assert faces.pixels[number] == faces.areas_px[number] == len(rows)
        np.testing.assert_allclose(faces.centroid[number], [cols.mean() + 0.5, rows.mean() + 0.5])
        assert (faces.class_id[number], faces.confidence[number]) == (mask.class_id, np.float32(mask.confidence))


def house(row: int, col: int, height: int, width: int, class_id: int = 4) -> Mask:
    return Mask(Window(row, col, height, width), np.ones((height, width), bool), class_id, 0.5)


@pytest.mark.parametrize("class_id", [4, 255])
def test_shaping_is_done_against_a_background_without_limits(class_id: int) -> None:
    """A merge area far above that of the margin around a mask leaves the mask as it is, and drops what is smaller."""
    big, small = house(10, 10, 30, 40, class_id), house(50, 0, 5, 6, class_id)
    faces = outlines([big, small], SHAPE, Shaping(min_area_m2=1000.0, simplify_m=0.5), legend=LEGEND)
    (kept,) = faces.polygons()
    assert kept.equals(shapely.box(10, 10, 50, 40))
    assert len(outlines([big, small], SHAPE, Shaping(min_area_m2={"house": 1000.0}), legend=LEGEND)) == (1 if class_id == 4 else 2)


def test_holes_are_filled_and_outlines_at_the_border_stay_inside() -> None:
    ring = house(0, 0, 20, 20)
    ring.inside[8:10, 8:10] = False
    (filled,) = outlines([ring], SHAPE, Shaping(min_hole_m2=5.0, smooth=True), legend=LEGEND).polygons()
    assert not filled.interiors
    assert shapely.box(0, 0, SHAPE[1], SHAPE[0]).contains(filled)


def test_an_unknown_class_is_refused() -> None:
    with pytest.raises(OptionsError, match="class 'tree' is not in the legend"):
        outlines([], SHAPE, Shaping(regularize=("tree",)), legend=LEGEND)
