"""Lengths and mean values of faces, against geodesics, shapely and rasterized polygons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyproj
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from geoseg.errors import GeoreferenceError
from geoseg.polygons import Faces, polygonize
from geoseg.polygons.measure import face_areas, face_perimeters, pixel_areas, pixel_size, zonal_means
from geoseg.window import Window

SCENES = {
    "EPSG:32645": Affine(10, 0, 700_000, 0, -10, 8_000_000),
    "EPSG:3857": Affine(0.3, 0, 9e6, 0, -0.3, 6e6),
    "EPSG:4326": Affine(1e-5, 0, 11, 0, -1e-5, 50),
    "EPSG:2263": Affine(0.5, 0, 1e6, 0, -0.5, 2e5),
    "EPSG:27561": Affine(1, 0, 6e5, 0, -1, 2e5),
    "EPSG:3031": Affine(10, 3, 0, 2, -10, 0),
}


def outline(classes: np.ndarray) -> Faces:
    return polygonize([(Window.of(classes.shape), classes, None)], classes.shape)


def speckled(height: int, width: int, *, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).choice([0, 1, 2], (height, width), p=[0.2, 0.6, 0.2]).astype(np.uint8)


def moved(faces: Faces, seed: int = 0) -> Faces:
    """The same faces with every corner moved by less than a third of a pixel, alike wherever it occurs."""
    corners, which = np.unique(faces.vertices, axis=0, return_inverse=True)
    shift = np.random.default_rng(seed).uniform(-0.3, 0.3, corners.shape)
    return replace(faces, vertices=(corners + shift)[which.ravel()])


@pytest.mark.parametrize("crs", SCENES)
def test_perimeters_are_geodesic(crs):
    classes = np.zeros((600, 800), np.uint8)
    classes[280:330, 380:440], classes[295:310, 400:410] = 1, 0
    classes[560, 60] = classes[100, 700] = 1
    grid = GeoBox(classes.shape, SCENES[crs], crs)
    faces = outline(classes)
    to_geodetic = pyproj.Transformer.from_crs(grid.crs.proj, grid.crs.proj.geodetic_crs, always_xy=True)
    unit = np.degrees(grid.crs.proj.geodetic_crs.axis_info[0].unit_conversion_factor)

    for polygon, length in zip(faces.polygons(grid.affine), face_perimeters(faces, grid), strict=True):
        expected = 0.0
        for ring in (polygon.exterior, *polygon.interiors):
            path = shapely.get_coordinates(shapely.segmentize(ring, 2 * abs(grid.affine.a)))
            angles = to_geodetic.transform(path[:, 0], path[:, 1])
            expected += grid.crs.proj.get_geod().line_length(*(np.array(angle) * unit for angle in angles))
        assert length == pytest.approx(expected, rel=3e-6)


def test_perimeters_in_utm_are_planar_lengths_over_the_scale():
    grid = GeoBox((40, 60), Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000), "EPSG:32645")
    faces = moved(outline(speckled(40, 60)))

    planar = shapely.length(faces.polygons(grid.affine))

    assert face_perimeters(faces, grid) == pytest.approx(planar / 0.9996, rel=1e-6)


@pytest.mark.parametrize("transform", [Affine(2, 0, 0, 0, -2, 0), Affine(0.3, 0.1, 5, 0.1, -0.3, 9), Affine(0, 2, 0, 3, 0, 0)])
def test_perimeters_without_a_crs_are_planar(transform):
    grid = GeoBox((20, 30), transform, None)
    faces = moved(outline(speckled(20, 30)))

    assert face_perimeters(faces, grid) == pytest.approx(shapely.length(faces.polygons(transform)))


def test_sizes_in_feet_come_out_in_metres():
    grid = GeoBox((3, 3), Affine(2, 0, 0, 0, -3, 0), 'LOCAL_CS["site",UNIT["foot",0.3048]]')
    faces = outline(np.ones((3, 3), np.uint8))

    assert face_perimeters(faces, grid) == pytest.approx([30 * 0.3048])
    assert face_areas(faces, grid) == pytest.approx([54 * 0.3048**2])
    assert pixel_size(grid) == pytest.approx((0.6096, 0.9144))


def test_perimeters_outside_of_the_domain_are_not_a_number():
    grid = GeoBox((3, 3), Affine(0.01, 0, 1e9, 0, -0.01, 1e9), "EPSG:32645")

    assert np.isnan(face_perimeters(outline(np.ones((3, 3), np.uint8)), grid)).all()
    with pytest.raises(GeoreferenceError, match="not defined"):
        pixel_size(grid)


def test_a_node_of_the_lattice_outside_of_the_domain_does_not_spoil_its_neighbours():
    grid = GeoBox((180, 360), Affine(1, 0, -180, 0, -1, 92), "EPSG:4326")
    classes = np.zeros((180, 360), np.uint8)
    classes[90:92, 180:182] = classes[178:, 5] = 1
    faces = outline(classes)

    assert np.isfinite(face_perimeters(faces, grid)).all()
    assert face_perimeters(faces, grid)[0] == pytest.approx(4 * 2 * 111_000, rel=0.01)


def test_the_size_of_a_pixel_multiplies_to_its_area():
    for crs, transform in SCENES.items():
        if crs != "EPSG:3031":  # its grid is sheared
            grid = GeoBox((600, 800), transform, crs)
            width, height = pixel_size(grid)
            assert width * height == pytest.approx(pixel_areas(grid, np.array([[400.0, 300.0]]))[0], rel=1e-6)


def test_areas_follow_the_moved_outline():
    grid = GeoBox((30, 30), Affine(0.5, 0, 0, 0, -0.5, 0), None)
    faces = outline(speckled(30, 30))

    shrunk = replace(faces, areas_px=faces.areas_px / 2)

    assert face_areas(shrunk, grid) == pytest.approx(face_areas(faces, grid) / 2)


def rows(values: np.ndarray, valid: np.ndarray, height: int):
    for window in Window.of(valid.shape).split(height, valid.shape[1]):
        part = window.within(Window.of(valid.shape))
        yield window, values[:, *part], valid[part]


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    seed=st.integers(0, 999),
    shaken=st.booleans(),
    dtype=st.sampled_from([np.uint8, np.int16, np.float32]),
)
def test_zonal_means_are_those_of_the_rasterized_polygons(height, width, seed, shaken, dtype):
    rng = np.random.default_rng(seed)
    faces = outline(speckled(height, width, seed=seed))
    faces = moved(faces, seed) if shaken else faces
    values, valid = rng.integers(0, 100, (2, height, width)).astype(dtype), rng.random((height, width)) < 0.8

    means = zonal_means(faces, rows(values, valid, int(rng.integers(1, height + 1))), 2)

    for polygon, found in zip(faces.polygons(), means, strict=True):
        inside = rasterio.features.rasterize([polygon], (height, width), transform=Affine.identity()).astype(bool) & valid
        expected = [band[inside].mean(dtype=float) if inside.any() else np.nan for band in values]
        assert found == pytest.approx(expected, nan_ok=True)


def test_each_pixel_counts_in_one_face_where_outlines_are_moved():
    faces = moved(outline(np.random.default_rng(8).integers(1, 4, (9, 8)).astype(np.uint8)))
    one_pixel_each = np.eye(72).reshape(72, 9, 8)

    means = zonal_means(faces, rows(one_pixel_each, np.ones((9, 8), bool), 4), 72)

    assert ((means > 0).sum(axis=0) == 1).all()


def test_a_raster_without_faces_has_no_means():
    faces = outline(np.zeros((4, 5), np.uint8))

    assert zonal_means(faces, rows(np.ones((1, 4, 5)), np.ones((4, 5), bool), 2), 1).shape == (0, 1)
    assert face_perimeters(faces, GeoBox((4, 5), Affine.identity(), None)).shape == (0,)


def test_rings_of_a_face_are_measured_without_the_ways_between_them():
    classes = np.ones((9, 9), np.uint8)
    classes[1:8:2, 1:8:2] = 0
    faces = outline(classes)

    lengths = face_perimeters(faces, GeoBox((9, 9), Affine.identity(), None))

    assert lengths == [36 + 16 * 4]
