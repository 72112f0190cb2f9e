"""Many scenes as one map: a virtual raster, and polygons that go on across the borders of scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.engine import Options
from geoseg.errors import GeoreferenceError, OutputError
from geoseg.legend import ISPRS
from geoseg.mosaic import write_vrt
from geoseg.verbs.batch import Settings, batch
from tests.conftest import make_scene
from tests.oracles import model_folder

STEP = 0.5
ORIGIN = (350_000.0, 3_060_000.0)


def place(row: float, col: float, step: float = STEP) -> Affine:
    return Affine(step, 0, ORIGIN[0] + col * STEP, 0, -step, ORIGIN[1] - row * STEP)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


@settings(max_examples=40)
@given(
    places=st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_a_mosaic_shows_the_last_scene_that_has_data(tmp_path_factory: pytest.TempPathFactory, places: list, seed: int) -> None:
    folder, rng = tmp_path_factory.mktemp("mosaic"), np.random.default_rng(seed)
    first_row, first_col = (min(place[axis] for place in places) for axis in (0, 1))
    size = [max(place[axis] + place[axis + 2] for place in places) for axis in (0, 1)]
    expected = np.zeros((size[0] - first_row, size[1] - first_col), np.uint8)
    paths = []
    for number, (row, col, height, width) in enumerate(places):
        classes = rng.integers(0, 4, (height, width), np.uint8)
        paths.append(make_scene(folder / f"scene {number}.tif", classes[None], nodata=0, transform=place(row, col)))
        part = expected[row - first_row :, col - first_col :][:height, :width]
        part[classes > 0] = classes[classes > 0]
    assert write_vrt(paths, folder / "all.vrt", ISPRS) == 0
    with rasterio.open(folder / "all.vrt") as file:
        assert np.array_equal(file.read(1), expected)
        assert (file.nodata, file.crs) == (0, rasterio.CRS.from_epsg(32645))
        assert file.transform.almost_equals(place(first_row, first_col))
        assert file.colormap(1)[2][:3] == ISPRS.classes[1].rgb


def test_scenes_off_the_grid_are_moved_by_less_than_half_a_pixel_and_counted(tmp_path: Path) -> None:
    ones = np.ones((1, 4, 4), np.uint8)
    paths = [make_scene(tmp_path / f"{number}.tif", ones * (number + 1), nodata=0, transform=place(0, 4.3 * number)) for number in range(3)]
    assert write_vrt(paths, tmp_path / "all.vrt") == 2
    assert read(tmp_path / "all.vrt").tolist() == [[1] * 4 + [2] * 4 + [0] + [3] * 4] * 4


@pytest.mark.parametrize(
    "other", [{"crs": "EPSG:32644"}, {"transform": place(0, 0, 0.51)}, {"crs": None}, {"transform": place(0, 0) @ Affine.rotation(3)}]
)
def test_what_is_on_no_common_grid_is_refused(tmp_path: Path, other: dict) -> None:
    ones = np.ones((1, 4, 4), np.uint8)
    paths = [
        make_scene(tmp_path / "a.tif", ones, nodata=0, transform=place(0, 0)),
        make_scene(tmp_path / "b.tif", ones, nodata=0, **{"transform": place(0, 4), **other}),
    ]
    with pytest.raises(GeoreferenceError, match=r"b\.tif"):
        write_vrt(paths, tmp_path / "all.vrt")
    assert not (tmp_path / "all.vrt").exists()


def polygons(path: Path) -> list[tuple[int, float]]:
    """Class and area of each polygon in a GeoPackage, in order; all are as sure as can be."""
    found = []
    for name in (name for name, _ in pyogrio.list_layers(path) if name != "layer_styles"):
        table = pyogrio.read_dataframe(path, layer=name)
        assert table.confidence.between(0, 1).all()
        found += [(int(row.class_id), row.geometry.area) for row in table.itertuples()]
    return sorted(found)


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A scene, cut into four."""
    folder, rng = tmp_path_factory.mktemp("tiled"), np.random.default_rng(1)
    whole = (1 + 250 * np.kron(rng.random((3, 7, 8)), np.ones((20, 20)))).astype(np.uint8)
    return [
        make_scene(folder / f"part{row}{col}.tif", whole[:, row : row + 75, col : col + 90], nodata=0, transform=place(row, col))
        for row in (0, 75)
        for col in (0, 90)
    ]


def test_polygons_go_on_from_scene_to_scene(tiled: list[Path], tmp_path: Path) -> None:
    model = model_folder(tmp_path / "tiny")
    chosen = Settings(model=str(model), options=Options(precision="fp32"), quicklook=False, confidence=True)
    out, target = tmp_path / "out", tmp_path / "map.gpkg"
    batch(tiled[:3], out=out, settings=chosen, mosaic=target)
    before = target.stat().st_mtime_ns
    batch(tiled[:3], out=out, settings=chosen, mosaic=target)
    assert target.stat().st_mtime_ns == before, "made anew though nothing had changed"
    batch(tiled, out=out, settings=chosen, mosaic=target)

    parts = [read(out / f"{path.stem}_classes.tif") for path in tiled]
    whole = np.vstack([np.hstack(parts[:2]), np.hstack(parts[2:])])
    assert np.array_equal(read(out / "map_classes.vrt"), whole)
    expected = sorted(
        (int(value), shapely.geometry.shape(shape).area)
        for shape, value in rasterio.features.shapes(whole, mask=whole > 0, transform=place(0, 0))
    )
    found = polygons(target)
    assert found == expected
    assert len(found) < sum(len(polygons(out / f"{path.stem}_polygons.gpkg")) for path in tiled), "none was joined: the test shows nothing"


def test_a_file_of_unknown_origin_is_not_replaced(tiled: list[Path], tmp_path: Path) -> None:
    model, target = model_folder(tmp_path / "tiny"), tmp_path / "map.gpkg"
    target.write_text("precious")
    chosen = Settings(model=str(model), options=Options(precision="fp32"), quicklook=False)
    with pytest.raises(OutputError, match="exists already"):
        batch(tiled[:1], out=tmp_path / "out", settings=chosen, mosaic=target)
    assert target.read_text() == "precious"
    assert not list((tmp_path / "out").glob("*_classes.tif")), "refused only after the work was done"
