"""Bounding boxes and areas of interest as pixels."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from geoseg.errors import GeoreferenceError, OptionsError
from geoseg.polygons.coverage import on_map
from geoseg.region import Region
from geoseg.window import Window

UTM = "EPSG:32645"
GRID = GeoBox((40, 60), Affine(0.5, 0, 354000, 0, -0.5, 3057000), UTM)


def test_without_a_wish_the_region_is_the_scene() -> None:
    region = Region.of(GRID)
    assert region.window == Window(0, 0, 40, 60)
    assert region.mask(Window(3, 4, 5, 6)).all()


@given(st.integers(0, 38), st.integers(0, 58), st.integers(1, 40), st.integers(1, 60))
def test_a_box_on_pixel_borders_is_those_pixels(row: int, col: int, height: int, width: int) -> None:
    (left, top), (right, bottom) = on_map(GRID.transform, np.array([[col, row], [col + width, row + height]], float))
    assert Region.of(GRID, (left, bottom, right, top)).window == Window(row, col, height, width) & Window(0, 0, 40, 60)


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (5, 0, 1, 1), (0, 0, float("nan"), 1), (1, 2, 3)])
def test_a_box_that_leaves_nothing_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(OptionsError, match="bbox"):
        Region.of(GRID, box)


@pytest.mark.parametrize("crs", [UTM, "EPSG:4326"])
def test_an_area_masks_pixel_centres(tmp_path: Path, crs: str) -> None:
    triangle = shapely.transform(shapely.Polygon([(7.3, 5.2), (50.6, 11.9), (20.4, 33.3)]), lambda points: on_map(GRID.transform, points))
    path = tmp_path / "aoi.gpkg"
    geopandas.GeoDataFrame(geometry=[triangle], crs=UTM).to_crs(crs).to_file(path)
    region = Region.of(GRID, aoi=path)
    expected = rasterio.features.geometry_mask([triangle], (40, 60), GRID.transform, invert=True)
    assert region.window == Window(5, 7, 29, 44)
    whole = np.zeros((40, 60), bool)
    for part in region.window.split(7, 11):
        whole[part.within(Window(0, 0, 40, 60))] = region.mask(part)
    np.testing.assert_array_equal(whole, expected)


def test_areas_and_boxes_intersect(tmp_path: Path) -> None:
    path = tmp_path / "aoi.gpkg"
    geopandas.GeoDataFrame(geometry=[shapely.box(354002, 3056990, 354010, 3056998)], crs=UTM).to_crs("EPSG:4326").to_file(path)
    region = Region.of(GRID, (354000, 3056995, 354005, 3057000), path)
    assert region.window == Window(4, 4, 6, 6)


def test_files_that_are_no_areas_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "aoi.gpkg"
    text.write_text("no")
    with pytest.raises(OptionsError, match="not a readable vector file"):
        Region.of(GRID, aoi=text)
    points = tmp_path / "points.gpkg"
    geopandas.GeoDataFrame(geometry=[shapely.Point(0, 0)], crs=UTM).to_file(points)
    with pytest.raises(OptionsError, match="holds no polygons"):
        Region.of(GRID, aoi=points)
    far = tmp_path / "far.gpkg"
    geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs=UTM).to_file(far)
    with pytest.raises(OptionsError, match="do not overlap"):
        Region.of(GRID, aoi=far)
    with pytest.raises(GeoreferenceError, match="the scene has none"):
        Region.of(GeoBox((40, 60), Affine.identity(), None), aoi=far)
