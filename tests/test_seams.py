from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import geoseg
from geoseg.polygons import Faces, polygonize
from geoseg.window import Window

DEMO = Path(__file__).parents[1] / "demo" / "banepa.tif"
SHAPE = (600, 700)


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The default model's map of a part of the demo scene, ``SHAPE``."""
    out = tmp_path_factory.mktemp("predicted")
    with rasterio.open(DEMO) as scene:
        (west, north), (east, south) = scene.transform * (900, 800), scene.transform * (900 + SHAPE[1], 800 + SHAPE[0])
    geoseg.predict(DEMO, out=out, bbox=(west + 0.01, south + 0.01, east - 0.01, north - 0.01), vectors=False, quicklook=False)
    with rasterio.open(out / "banepa_classes.tif") as raster:
        return raster.read(1)


@pytest.fixture(scope="module", params=["blobs", "predicted"])
def classes(request: pytest.FixtureRequest) -> np.ndarray:
    """Blobs of six classes and of no data, with speckle; and a real prediction, ``SHAPE``."""
    if request.param == "predicted":
        return request.getfixturevalue("predicted")
    rng = np.random.default_rng(3)
    fields = [ndimage.gaussian_filter(rng.standard_normal(SHAPE), sigma) * sigma for sigma in (2, 4, 6, 6, 9, 12)]
    raster = (1 + np.argmax(fields, axis=0)).astype(np.uint8)
    raster[rng.random(SHAPE) < 0.01] = 3
    raster[ndimage.gaussian_filter(rng.standard_normal(SHAPE), 20) > 0.025] = 0
    return raster


def cut(classes: np.ndarray, windows: list[Window]):
    whole = Window.of(classes.shape)
    return ((window, classes[window.within(whole)], None) for window in windows)


def outline(classes: np.ndarray, height: int | None = None, width: int | None = None) -> Faces:
    blocks = Window.of(classes.shape).split(height or classes.shape[0], width or classes.shape[1])
    return polygonize(cut(classes, list(blocks)), classes.shape)


def edges(faces: Faces) -> np.ndarray:
    """All edges of all polygons as (N, 4) column, row, column, row."""
    joined = np.hstack([faces.vertices[:-1], faces.vertices[1:]])
    return np.delete(joined, faces.ring_offsets[1:-1] - 1, axis=0)


def unit_edges(faces: Faces) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the pixels below level edges, and to the right of upright ones, of one pixel each: (N, 2) twice."""
    ends = edges(faces)
    low, high = np.minimum(ends[:, :2], ends[:, 2:]), np.maximum(ends[:, :2], ends[:, 2:])
    lengths = (high - low).sum(axis=1)
    steps = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    level = np.repeat(low[:, 1] == high[:, 1], lengths)
    places = np.repeat(low[:, ::-1], lengths, axis=0)
    places[level, 1] += steps[level]
    places[~level, 0] += steps[~level]
    return places[level], places[~level]


@pytest.mark.parametrize(("height", "width"), [(137, 211), (1, 700), (600, 1), (97, 89), (31, 700), (599, 699)])
def test_no_edge_lies_on_the_border_of_a_block_where_the_class_does_not_change(classes, height, width):
    level, upright = unit_edges(outline(classes, height, width))
    around = np.pad(classes, 1)
    below, right = level + 1, upright + 1  # in `around`

    on_border = level[:, 0] % height == 0
    assert on_border.any()
    assert (around[*below[on_border].T] != around[*(below[on_border] - (1, 0)).T]).all()
    on_border = upright[:, 1] % width == 0
    assert on_border.any()
    assert (around[*right[on_border].T] != around[*(right[on_border] - (0, 1)).T]).all()


@pytest.mark.parametrize(("height", "width"), [(137, 211), (1, 700), (97, 89), (31, 700), (599, 699)])
def test_the_polygons_are_the_same_whatever_the_blocks(classes, height, width):
    whole, cut_up = outline(classes), outline(classes, height, width)

    for name in Faces.__dataclass_fields__:
        assert np.array_equal(getattr(whole, name), getattr(cut_up, name), equal_nan=name == "confidence"), name


def test_the_polygons_are_the_same_whatever_the_order_of_the_blocks(classes):
    windows = list(Window.of(SHAPE).split(113, 127))
    np.random.default_rng(0).shuffle(windows)

    assert np.array_equal(polygonize(cut(classes, windows), SHAPE).vertices, outline(classes).vertices)


def test_count_class_and_area_are_those_of_rasterio(classes):
    faces = outline(classes, 137, 211)
    peers = [(value, shapely.geometry.shape(shape)) for shape, value in rasterio.features.shapes(classes, mask=classes > 0)]
    polygons = faces.polygons()

    assert len(faces) == len(peers) > 50
    assert sorted(zip(faces.class_id.tolist(), shapely.area(polygons).tolist(), strict=True)) == sorted(
        (int(value), polygon.area) for value, polygon in peers
    )
    assert np.bincount(faces.class_id, shapely.area(polygons), 256)[1:].tolist() == np.bincount(classes.ravel(), minlength=256)[1:].tolist()
    assert shapely.is_valid(polygons).all()
    assert shapely.coverage_is_valid(polygons)


def test_a_side_across_blocks_has_no_corner_where_they_meet():
    classes = np.ones((90, 90), np.uint8)
    classes[10:80, 20:70] = 2
    faces = outline(classes, 7, 11)

    assert np.diff(faces.ring_offsets).tolist() == [5, 5, 5]


def test_all_classes_there_can_be():
    rng = np.random.default_rng(1)
    classes = np.repeat(np.repeat(rng.permutation(255).reshape(15, 17) + 1, 3, axis=0), 3, axis=1).astype(np.uint8)
    faces = outline(classes, 5, 7)

    assert sorted(faces.class_id.tolist()) == list(range(1, 256))
    assert (faces.pixels == 9).all()
    assert (rasterio.features.rasterize(zip(faces.polygons(), faces.class_id.tolist(), strict=True), classes.shape) == classes).all()


def test_nothing_but_no_data():
    faces = outline(np.zeros((20, 30), np.uint8), 7, 11)

    assert len(faces) == len(faces.vertices) == 0


@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_single_pixel(value):
    assert outline(np.array([[value]], np.uint8)).class_id.tolist() == [value] * (value > 0)


@settings(deadline=None, max_examples=30)
@given(side=st.integers(1, 24), height=st.integers(1, 24), width=st.integers(1, 24), rising=st.booleans())
def test_diagonals_fall_apart_to_pixels_and_keep_what_they_divide(side, height, width, rising):
    diagonal = np.eye(side, dtype=np.uint8)[:: -1 if rising else 1] + 1
    faces = outline(diagonal, height, width)

    assert faces.count()[2] == side
    assert faces.count()[1] == (0 if side == 1 else 2)
    assert shapely.is_valid(faces.polygons()).all()
    assert shapely.coverage_is_valid(faces.polygons())


def test_blocks_that_come_one_by_one_from_disk_may_be_views(classes):
    bands = [classes[top:end] for top, end in pairwise([0, 41, 300, 600])]
    blocks = ((Window(top, 0, len(band), 700), np.asfortranarray(band), None) for top, band in zip((0, 41, 300), bands, strict=True))

    assert np.array_equal(polygonize(blocks, SHAPE).vertices, outline(classes).vertices)
