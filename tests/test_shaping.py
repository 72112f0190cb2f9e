"""Laws 6 to 8 with everything on: whatever is done to the outlines, the polygons stay a coverage of the valid area."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from geoseg.errors import OptionsError
from geoseg.legend import ISPRS
from geoseg.polygons import Faces, Shaping, polygonize
from geoseg.window import Window
from tests.test_polygons import cut, layouts, rasters

NAMES = [c.name for c in ISPRS.classes]


@st.composite
def shapings(draw: st.DrawFn) -> Shaping:
    names = st.lists(st.sampled_from(NAMES[:3]), unique=True).map(tuple)
    sizes, connectivity = st.sampled_from([0.0, 0.0, 2.0, 5.0]), draw(st.sampled_from([4, 4, 8]))
    return Shaping(
        min_area_m2=draw(st.one_of(sizes, st.dictionaries(st.sampled_from(NAMES[:3]), sizes))),
        min_hole_m2=draw(sizes),
        simplify_m=draw(st.sampled_from([0.0, 0.4, 1.0, 3.0, 50.0])),
        simplify_method=draw(st.sampled_from(["dp", "vw"])),
        smooth=draw(st.booleans()),
        regularize=draw(names),
        split=draw(names) if connectivity == 4 else (),
        connectivity=connectivity,
    )


@st.composite
def scenes(draw: st.DrawFn) -> np.ndarray:
    """Small rasters of all kinds, and larger ones of slanted rectangles, discs and bars on a ground of blots, with no data."""
    if draw(st.booleans()):
        return np.minimum(draw(rasters()), 6)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    height, width = rng.integers(20, 60, 2)
    rows, cols = np.mgrid[:height, :width]
    classes = 1 + 2 * (np.kron(rng.random((height // 6 + 1, width // 6 + 1)), np.ones((6, 6)))[:height, :width] > 0.6)
    for _ in range(draw(st.integers(1, 5))):
        row, col, angle, long, wide = rng.uniform(0, [height, width, np.pi, 14, 8])
        along = (rows - row) * np.sin(angle) + (cols - col) * np.cos(angle)
        across = (rows - row) * np.cos(angle) - (cols - col) * np.sin(angle)
        figure = (abs(along) < long) & (abs(across) < wide) if rng.random() < 0.7 else along**2 + across**2 < wide**2
        classes[figure] = rng.choice([0, 1, 2, 2, 3])
    speckle = rng.random(classes.shape) < rng.choice([0, 0.03])
    return np.where(speckle, rng.integers(0, 4, classes.shape), classes).astype(np.uint8)


def shaped(classes: np.ndarray, shaping: Shaping, windows: list[Window] | None = None) -> Faces:
    whole = Window.of(classes.shape)
    return polygonize(cut(classes, windows), classes.shape, shaping, None, ISPRS, lambda window: (classes[window.within(whole)], None))


@settings(deadline=None, max_examples=150)
@given(data=st.data(), classes=scenes(), shaping=shapings())
def test_shaped_polygons_are_a_coverage_of_the_valid_area_whatever_the_blocks(data, classes, shaping):
    faces = shaped(classes, shaping)
    polygons = faces.polygons()
    assert shapely.is_valid(polygons).all()
    assert not shapely.is_empty(polygons).any()
    assert shapely.coverage_is_valid(shapely.get_parts(polygons))
    assert shapely.area(polygons).sum() == pytest.approx((classes > 0).sum(), abs=1e-6)
    np.testing.assert_allclose(faces.areas_px, shapely.area(polygons), atol=1e-6)
    assert faces.pixels.sum() == (classes > 0).sum()
    parts = shaped(classes, shaping, data.draw(layouts(classes.shape)))
    for name in ("class_id", "vertices", "ring_offsets", "polygon_offsets", "part_offsets"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(faces, name))


def test_sizes_are_metres_on_the_ground():
    classes = np.ones((40, 40), np.uint8)
    classes[5:8, 5:8] = 2
    classes[20:25, 20:25] = 2
    degrees = GeoBox((40, 40), (1 / 111_320 / 2, 0, 30.0, 0, -1 / 110_574 / 2, 0.0), "EPSG:4326")  # pixels of half a metre
    found = {least: len(polygonize(cut(classes), classes.shape, Shaping(min_area_m2=least), degrees)) for least in (2.0, 3.0, 7.0)}
    assert found == {2.0: 3, 3.0: 2, 7.0: 1}


def test_touching_instances_become_polygons_of_their_own():
    rows, cols = np.mgrid[:40, :80]
    classes = np.ones((40, 80), np.uint8)
    for col in (20, 39, 58):
        classes[(rows - 20) ** 2 + (cols - col) ** 2 < 100] = 5
    assert shaped(classes, Shaping()).class_id.tolist().count(5) == 1
    faces = shaped(classes, Shaping(split=(NAMES[4],), smooth=True, simplify_m=0.5))
    assert faces.class_id.tolist() == [1, 5, 5, 5]
    assert shapely.coverage_is_valid(faces.polygons())


def test_a_class_that_the_legend_lacks_is_refused():
    for shaping in (Shaping(min_area_m2={"house": 4}), Shaping(regularize=("house",)), Shaping(split=("house",))):
        with pytest.raises(OptionsError, match="'house' is not in the legend; it has impervious"):
            shaped(np.ones((3, 3), np.uint8), shaping)


@pytest.mark.parametrize(
    "facts",
    [
        *({"min_area_m2": -1}, {"min_hole_m2": np.nan}, {"simplify_m": np.inf}, {"simplify_method": "x"}, {"connectivity": 6}),
        {"split": ("car",), "connectivity": 8},
    ],
)
def test_impossible_shapings_are_refused(facts):
    with pytest.raises(OptionsError):
        Shaping(**facts)
