"""Scenes against rasterio, and every way a raster can be odd."""

from __future__ import annotations

import csv
import hashlib
import json
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Geod
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from geoseg.errors import BandsError, GeoreferenceError, ReadError, SceneError
from geoseg.resample import resample, taps
from geoseg.scene import Policy, Scene, Stretch
from geoseg.window import Window
from tests.conftest import PLACE, SHARED, Recipe, make_scene, recipes, windows

RGB = ("red", "green", "blue")


def grey(height: int = 40, width: int = 30, dtype: str = "uint8") -> np.ndarray:
    rng = np.random.default_rng(height * width)
    return rng.integers(0, 200, (3, height, width)).astype(dtype)


@given(recipes(), windows())
def test_reading_is_rasterios_boundless_reading(recipe: Recipe, place: tuple[int, int, int, int]) -> None:
    window = Window(*place)
    with tempfile.TemporaryDirectory() as folder:
        path = recipe.write(f"{folder}/s.tif")
        scene = Scene.describe(path, bands=RGB)
        pixels, valid = scene.read(window)
        with scene.reader() as reader:
            np.testing.assert_array_equal(reader.valid(window), valid)
            assert not (reader.empty(window) and valid.any())
    height, width = recipe.valid.shape
    inside = window & Window(0, 0, height, width)
    expected = np.zeros(window.shape, bool)
    if inside is not None:
        expected[inside.within(window)] = recipe.valid[inside.within(Window(0, 0, height, width))]
        shown = recipe.pixels[:, *inside.within(Window(0, 0, height, width))]
        kept = expected[inside.within(window)]
        np.testing.assert_array_equal(pixels[:, *inside.within(window)][:, kept], shown[:, kept])
    np.testing.assert_array_equal(valid, expected)
    outside = np.ones(window.shape, bool)
    if inside is not None:
        outside[inside.within(window)] = False
    assert not pixels[:, outside].any()
    assert pixels.dtype == recipe.pixels.dtype
    assert pixels.transpose(1, 2, 0).flags.c_contiguous


@given(recipes(most=90), st.tuples(st.integers(1, 120), st.integers(1, 120)), st.data())
@settings(max_examples=40)
def test_a_resampled_pixel_has_one_value_whatever_window_is_read(recipe: Recipe, shape: tuple[int, int], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene.describe(recipe.write(f"{folder}/s.tif"), bands=RGB).resampled(shape)
        whole = Window.of(shape)
        pixels, valid = scene.read(whole)
        row, col = data.draw(st.integers(-9, shape[0] - 1)), data.draw(st.integers(-9, shape[1] - 1))
        window = Window(row, col, data.draw(st.integers(1, 99)), data.draw(st.integers(1, 99)))
        with scene.reader() as reader:
            piece, kept = reader.read(window)
            np.testing.assert_array_equal(reader.valid(window), kept)
            assert not (reader.empty(window) and kept.any())
    inside = window & whole
    assert kept.sum() == (0 if inside is None else valid[inside.within(whole)].sum())
    if inside is not None:
        np.testing.assert_array_equal(piece[:, *inside.within(window)], pixels[:, *inside.within(whole)])
        np.testing.assert_array_equal(kept[inside.within(window)], valid[inside.within(whole)])
    if scene.source is not None:
        assert (valid.any()) == recipe.valid.any()
        assert not pixels[:, ~valid].any()


def test_resampling_in_pieces_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene.describe(make_scene(tmp_path / "s.tif", grey(97, 89))).resampled((50, 120))
    expected = scene.read(Window(-3, -3, 60, 130))[0]
    monkeypatch.setattr("geoseg.scene._PIECE", 1)
    np.testing.assert_array_equal(scene.read(Window(-3, -3, 60, 130))[0], expected)


@pytest.mark.parametrize("transform", [PLACE, Affine(0.3, 0.4, 5, 0.4, -0.3, 7), Affine(-1, 0, 9, 0, 1, 9), Affine.identity()])
@pytest.mark.parametrize("crs", [None, "EPSG:32645", 'LOCAL_CS["mine",UNIT["metre",1]]'])
def test_resampling_needs_no_georeference(tmp_path: Path, transform: Affine, crs: str | None) -> None:
    scene = Scene.describe(make_scene(tmp_path / "s.tif", grey(40, 30), transform=transform, crs=crs))
    small = scene.resampled((20, 60))
    expected = resample(grey(40, 30), np.ones((40, 30), bool), taps(40, 20, 0, 20), taps(30, 60, 0, 60))[0]
    np.testing.assert_array_equal(small.read(Window(0, 0, 20, 60))[0], expected)
    assert small.grid.extent.boundingbox == pytest.approx(scene.grid.extent.boundingbox)
    assert small.resampled((40, 30)) is scene
    assert small.resampled((10, 10)) == scene.resampled((10, 10))
    if scene.pixel_m:
        assert small.pixel_m == pytest.approx(scene.pixel_m, rel=1e-6)


@pytest.mark.parametrize(
    ("stored", "tag"),
    [(np.finfo(np.float32).min, -3.4e38), (-9999.0, -9999.0001), (np.float32(0.1), 0.1), (np.finfo(np.float32).max, 3.4028e38)],
)
def test_a_rounded_nodata_value_still_means_no_data(tmp_path: Path, stored: float, tag: float) -> None:
    pixels = np.full((3, 4, 4), 0.5, np.float32)
    pixels[:, 0] = stored
    pixels[0, 1] = stored
    scene = Scene.describe(make_scene(tmp_path / "s.tif", pixels, nodata=tag))
    np.testing.assert_array_equal(scene.read(Window(0, 0, 4, 4))[1].sum(axis=1), [0, 4, 4, 4])


@pytest.mark.parametrize("big", ["NO", "YES"])
@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
@pytest.mark.parametrize(("text", "told"), [(b"nan", "nan"), (b"-99", "-99"), (b"1.5", "1.5")])
def test_a_nodata_value_outside_the_type_is_ignored_and_said(tmp_path: Path, text: bytes, told: str, big: str, endian: str) -> None:
    path = make_scene(tmp_path / "s.tif", grey(), nodata=123, bigtiff=big, endianness=endian)
    path.write_bytes(path.read_bytes().replace(b"123\0", text + b"\0"))
    scene = Scene.describe(path)
    assert scene.nodata is None
    assert f"nodata value {told} does not occur in uint8" in scene.warnings[0]
    assert scene.read(Window(0, 0, 40, 30))[1].all()


def test_alpha_and_mask_and_nodata_add_up(tmp_path: Path) -> None:
    stored = np.full((4, 4, 4), 9, np.uint8)
    stored[3, 0] = 0
    stored[:3, 1] = 7
    mask = np.ones((4, 4), bool)
    mask[2] = False
    path = make_scene(tmp_path / "s.tif", stored, alpha=True, nodata=7)
    assert Scene.describe(path, bands=RGB).read(Window(0, 0, 4, 4))[1].sum(axis=1).tolist() == [0, 0, 4, 4]
    scene = Scene.describe(make_scene(tmp_path / "m.tif", stored[:3], mask=mask, nodata=7), bands=RGB)
    assert scene.validity == ("nodata", "mask")
    assert scene.read(Window(0, 0, 4, 4))[1].sum(axis=1).tolist() == [4, 0, 0, 4]


def test_a_fourth_band_is_alpha_only_by_name(tmp_path: Path) -> None:
    stored = np.concatenate([grey(), np.zeros((1, 40, 30), np.uint8)])
    scene = Scene.describe(make_scene(tmp_path / "n.tif", stored, colours=(*RGB, "undefined")), bands=RGB)
    assert (scene.alpha, scene.bands, scene.validity) == (None, (1, 2, 3), ())
    scene = Scene.describe(make_scene(tmp_path / "a.tif", stored, alpha=True), bands=RGB)
    assert scene.alpha == 4
    assert not scene.read(Window(0, 0, 40, 30))[1].any()
    assert Scene.describe(tmp_path / "a.tif", indexes=(4, 1, 2)).alpha is None, "chosen by number it is data"


def test_bands_come_in_the_order_asked_for(tmp_path: Path) -> None:
    path = make_scene(tmp_path / "s.tif", grey(), colours=("blue", "green", "red"))
    np.testing.assert_array_equal(Scene.describe(path, bands=RGB).read(Window(0, 0, 40, 30))[0], grey()[::-1])
    chosen = Scene.describe(path, bands=RGB, indexes=(2, 2, 1))
    np.testing.assert_array_equal(chosen.read(Window(0, 0, 40, 30))[0], grey()[[1, 1, 0]])
    with pytest.raises(BandsError, match="bands 1 to 3"):
        Scene.describe(path, bands=RGB, indexes=(1, 2, 4))


@pytest.mark.parametrize("dtype", ["int8", "complex64", "int64"])
def test_types_that_are_no_image_are_refused(tmp_path: Path, dtype: str) -> None:
    path = make_scene(tmp_path / "s.tif", grey(dtype=dtype))
    with pytest.raises(SceneError, match=f"type {dtype}, which is not supported"):
        Scene.describe(path)


def test_palettes_and_cmyk_are_refused(tmp_path: Path) -> None:
    path = make_scene(tmp_path / "p.tif", grey()[:1], photometric="palette")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {i: (i, 0, 0, 255) for i in range(256)})
    with pytest.raises(BandsError, match="-expand rgb"):
        Scene.describe(path, indexes=(1, 1, 1))
    path = make_scene(tmp_path / "c.tif", np.concatenate([grey(), grey()[:1]]), photometric="cmyk")
    with pytest.raises(BandsError, match="CMYK"):
        Scene.describe(path, bands=RGB)


def test_control_points_alone_are_no_grid(tmp_path: Path) -> None:
    points = [GroundControlPoint(row, col, 10 + col, 50 - row, 0) for row in (0, 40) for col in (0, 30)]
    path = make_scene(tmp_path / "g.tif", grey(), transform=Affine.identity(), gcps=points)
    with pytest.raises(GeoreferenceError, match=r"4 control points alone.*run gdalwarp first"):
        Scene.describe(path)
    line = [0.0] * 20
    rpc = RPC(0, 1, 50, 1, line, line, 20, 40, 10, 1, line, line, 15, 30)
    path = make_scene(tmp_path / "r.tif", grey(), crs=None, transform=Affine.identity(), rpcs=rpc)
    with pytest.raises(GeoreferenceError, match=r"RPC.*run gdalwarp first"):
        Scene.describe(path)


def test_a_flat_transform_is_refused(tmp_path: Path) -> None:
    path = make_scene(tmp_path / "s.tif", grey(), transform=Affine(1, 1, 0, 1, 1, 0))
    with pytest.raises(GeoreferenceError, match="no area"):
        Scene.describe(path)


def test_missing_georeference_is_said(tmp_path: Path) -> None:
    scene = Scene.describe(make_scene(tmp_path / "a.tif", grey(), crs=None))
    assert (scene.grid.crs, scene.crs_wkt, scene.pixel_m, scene.grid.transform) == (None, None, None, PLACE)
    assert "no CRS" in scene.warnings[0]
    scene = Scene.describe(make_scene(tmp_path / "b.tif", grey(), transform=Affine.identity()))
    assert (scene.grid.crs, scene.pixel_m, scene.grid.transform) == (None, None, Affine.identity())
    assert "pixel coordinates" in scene.warnings[0]


def test_heights_are_left_out_of_the_grid(tmp_path: Path) -> None:
    scene = Scene.describe(make_scene(tmp_path / "s.tif", grey(), crs="EPSG:25832+5783"))
    assert scene.grid.crs.epsg == 25832
    assert CRS.from_wkt(scene.crs_wkt or "").is_compound
    scene = Scene.describe(make_scene(tmp_path / "t.tif", grey(), crs="EPSG:4979", transform=Affine(1e-6, 0, 10, 0, -1e-6, 50)))
    assert len(scene.grid.crs.proj.axis_info) == 2


@pytest.mark.parametrize(
    ("crs", "transform", "expected"),
    [
        ("EPSG:32645", Affine(0.1, 0, 500_000, 0, -0.1, 3_060_000), 0.1 / 0.9996),
        ("EPSG:32645", Affine(0, 0.1, 500_000, 0.1, 0, 3_060_000), 0.1 / 0.9996),
        ("EPSG:32645", Affine(0.1, 0.2, 500_000, 0, -0.4, 3_060_000), 0.2 / 0.9996),
        ("EPSG:25832+5783", Affine(0.1, 0, 500_000, 0, -0.1, 5_800_000), 0.1 / 0.9996),
        ("EPSG:3857", Affine(1, 0, 0, 0, -1, 8_399_737.89), 0.5013),
        ("EPSG:2263", Affine(1, 0, 1_000_000, 0, 1, 200_000), 0.3048),
        ("EPSG:4326", Affine(1e-5, 0, 179.9999, 0, -1e-5, 0), 1.1095),
        ("+proj=laea +lat_0=90 +lon_0=0 +datum=WGS84 +units=m", Affine(10, 0, -150, 0, -10, 200), 10),
        ('LOCAL_CS["mine",UNIT["metre",1]]', PLACE, None),
        ("EPSG:4326", Affine(1, 0, 0, 0, -1, 500), None),
    ],
)
def test_the_pixel_is_measured_on_the_ground(tmp_path: Path, crs: str, transform: Affine, expected: float | None) -> None:
    scene = Scene.describe(make_scene(tmp_path / "s.tif", grey(), crs=crs, transform=transform))
    assert scene.pixel_m == (expected and pytest.approx(expected, rel=1e-3))


def test_a_large_pixel_has_its_true_area(tmp_path: Path) -> None:
    scene = Scene.describe(make_scene(tmp_path / "s.tif", grey(), crs="EPSG:4326", transform=Affine(0.5, 0, 10, 0, -0.5, 70)))
    west, north = 10 + 0.5 * 14.5, 70 - 0.5 * 19.5
    area, _ = Geod(ellps="WGS84").polygon_area_perimeter([west, west, west + 0.5, west + 0.5], [north, north - 0.5, north - 0.5, north])
    assert scene.pixel_m == pytest.approx(area**0.5, rel=1e-4)


def test_a_description_travels(tmp_path: Path) -> None:
    scene = Scene.describe(make_scene(tmp_path / "s.tif", grey(), nodata=0, tiled=True, blockxsize=16, blockysize=16), bands=RGB)
    for other in (scene, scene.resampled((20, 20))):
        again = pickle.loads(pickle.dumps(other))
        assert again == other
        np.testing.assert_array_equal(again.read(Window(-1, 3, 30, 30))[0], other.read(Window(-1, 3, 30, 30))[0])
        assert json.loads(json.dumps(other.facts()))["validity"] == ["nodata"]
    assert scene.facts()["block"] == [16, 16]
    assert scene.resampled((20, 20)).facts()["height"] == 20


def test_facts_name_what_is_there(tmp_path: Path) -> None:
    path = make_scene(tmp_path / "s.tif", grey(), compress="deflate", interleave="band", descriptions=("<b>", None, "c\nd"))
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    facts = Scene.describe(path).facts()
    assert (facts["height"], facts["width"], facts["dtype"], facts["epsg"]) == (40, 30, "uint8", 32645)
    assert (facts["compression"], facts["interleave"], facts["tiled"], facts["overviews"]) == ("DEFLATE", "band", False, [2, 4])
    assert [band["interpretation"] for band in facts["bands"]] == list(RGB)
    assert [band["description"] for band in facts["bands"]] == ["<b>", None, "c d"]
    assert facts["file_bytes"] == path.stat().st_size


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    path = make_scene(tmp_path / "s.tif", grey())
    scene = Scene.describe(path)
    assert scene.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    path.unlink()
    with pytest.raises(ReadError, match=r"s\.tif: cannot be read"):
        scene.sha256()
    with pytest.raises(ReadError, match=r"s\.tif: cannot be opened any more"):
        scene.read(Window(0, 0, 1, 1))


@given(recipes(dtypes=("uint16", "float32")), st.sampled_from([(2, 98), (0, 100), (10, 50)]))
@settings(max_examples=30)
def test_the_stretch_of_a_small_scene_counts_every_valid_pixel(recipe: Recipe, percentiles: tuple[float, float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene.describe(recipe.write(f"{folder}/s.tif"), bands=RGB)
        stretch = scene.stretch(percentiles)
        assert scene.resampled((7, 7)).stretch(percentiles) == stretch
    if not recipe.valid.any():
        assert stretch == Stretch((0, 0, 0), (1, 1, 1))
        return
    low, high = np.percentile(recipe.pixels[:, recipe.valid].astype(float), percentiles, axis=1)
    np.testing.assert_allclose(stretch.low, low)
    np.testing.assert_allclose(stretch.high, np.where(high > low, high, low + 1))


def test_the_stretch_of_a_large_scene_is_a_fair_sample(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows, cols = np.mgrid[:1500, :2100]
    pixels = np.clip(20 * rows + rng.normal(0, 900, (3, 1500, 2100)) + 9 * cols, 1, 65535).astype(np.uint16)
    pixels[:, :, 1000:] = 0
    scene = Scene.describe(make_scene(tmp_path / "s.tif", pixels, nodata=0))
    low, high = np.percentile(pixels[:, :, :1000].reshape(3, -1), (2, 98), axis=1)
    stretch = scene.stretch()
    np.testing.assert_allclose(stretch.low, low, rtol=0.1)
    np.testing.assert_allclose(stretch.high, high, rtol=0.02)


def test_the_stretch_finds_the_little_data_there_is(tmp_path: Path) -> None:
    pixels = np.zeros((3, 3000, 1100), np.uint16)
    pixels[:, 40:80, :90] = np.arange(1, 91, dtype=np.uint16)
    stretch = Scene.describe(make_scene(tmp_path / "s.tif", pixels, nodata=0, compress="deflate")).stretch((0, 100))
    assert all(1 <= low <= 5 for low in stretch.low)
    assert all(85 <= high <= 90 for high in stretch.high)


@pytest.mark.parametrize("layout", [{}, {"interleave": "band"}])
@pytest.mark.parametrize("alpha", [False, True])
def test_blocks_left_out_are_known_to_be_empty(tmp_path: Path, layout: dict[str, str], alpha: bool) -> None:
    options = {"tiled": True, "blockxsize": 16, "blockysize": 32, "sparse_ok": True, "compress": "deflate", **layout}
    pixels = np.zeros((4 if alpha else 3, 100, 100), np.uint8)
    pixels[:, 40, 50] = 9
    path = make_scene(tmp_path / "s.tif", pixels, alpha=alpha, nodata=None if alpha else 0, **options)
    with Scene.describe(path, bands=RGB).reader() as reader:
        assert not reader.empty(Window(0, 0, 100, 100))
        assert not reader.empty(Window(32, 48, 1, 1)), "in a block that is stored"
        assert reader.empty(Window(-5, -5, 37, 99))
        assert reader.empty(Window(100, 100, 9, 9))
    with Scene.describe(path, bands=RGB).resampled((50, 33)).reader() as reader:
        assert reader.empty(Window(0, 0, 15, 33))
        assert not reader.empty(Window(0, 0, 50, 33))
    plain = make_scene(tmp_path / "p.tif", np.zeros((3, 100, 100), np.uint8), **options)
    with Scene.describe(plain, bands=RGB).reader() as reader:
        assert not reader.empty(Window(0, 0, 16, 16)), "zeros are data where nothing says otherwise"
        assert reader.read(Window(0, 0, 16, 16))[1].all()


def test_strips_are_never_taken_for_empty(tmp_path: Path) -> None:
    """GDAL reads a huge strip row by row and then denies the offsets of all rows but the first."""
    path = make_scene(tmp_path / "s.tif", np.ones((3, 6000, 4000), np.uint8), nodata=0, blockysize=6000, compress="deflate")
    scene = Scene.describe(path)
    assert "not stored in tiles" in scene.warnings[0]
    with scene.reader() as reader:
        assert not reader.empty(Window(5000, 0, 10, 10))


@pytest.mark.parametrize("options", [{"compress": "deflate", "blockysize": 8}, {"tiled": True, "blockxsize": 16, "blockysize": 16}])
def test_a_cut_file_is_refused_where_it_is_cut(tmp_path: Path, options: dict[str, object]) -> None:
    path = make_scene(tmp_path / "cut.tif", grey(120, 90), **options)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    scene = Scene.describe(path)
    scene.read(Window(0, 0, 8, 8))
    for other in (scene, scene.resampled((60, 45))):
        with pytest.raises(ReadError) as caught:
            other.read(Window.of(other.shape))
        message = str(caught.value)
        assert message.startswith(f"{path}: rows 0-119, columns 0-89 cannot be decoded")
        assert message.isprintable()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # rasterio's log cannot decode what GDAL quotes
@pytest.mark.parametrize("options", [{}, {"compress": "lzw", "tiled": True, "blockxsize": 16, "blockysize": 16, "bigtiff": "YES"}])
def test_flipped_bytes_are_read_or_refused(tmp_path: Path, options: dict[str, object]) -> None:
    sound = make_scene(tmp_path / "sound.tif", grey(), descriptions=("a", "b", "c"), nodata=7, **options).read_bytes()
    rng = np.random.default_rng(7)
    policy = Policy(max_pixels=10**7, max_block_bytes=10**8)
    path = tmp_path / "flipped.tif"
    told = set()
    for _ in range(150):
        spoilt = bytearray(sound[: rng.integers(9, len(sound))] if rng.random() < 0.1 else sound)
        for place in rng.integers(0, min(len(spoilt), 600), rng.integers(1, 6)):
            spoilt[place] = rng.integers(0, 256)
        path.write_bytes(spoilt)
        try:
            scene = Scene.describe(path, policy=policy)
            scene.facts()
            scene.read(Window(-2, -2, 60, 60))
        except SceneError as error:
            assert str(error).startswith(str(path))
            assert str(error).isprintable()
            told.add(type(error))
    assert {SceneError, ReadError} <= told


def test_a_transform_without_a_tie_point_is_none(tmp_path: Path) -> None:
    """GDAL hands out a pixel size with no place and only warns."""
    path = make_scene(tmp_path / "s.tif", grey(), crs=None)
    tag, hidden = (33922).to_bytes(2, "little"), (65000).to_bytes(2, "little")
    path.write_bytes(path.read_bytes().replace(tag + b"\x0c\0", hidden + b"\x0c\0", 1))
    scene = Scene.describe(path)
    assert scene.grid.transform == Affine.identity()
    assert "pixel coordinates" in scene.warnings[0]
    assert scene.read(Window(0, 0, 40, 30))[1].all()


def test_another_file_in_its_place_is_noticed(tmp_path: Path) -> None:
    scene = Scene.describe(make_scene(tmp_path / "s.tif", grey()))
    make_scene(tmp_path / "s.tif", grey(41))
    with pytest.raises(ReadError, match="has changed"):
        scene.read(Window(0, 0, 1, 1))


def test_readers_in_threads_do_not_meet(tmp_path: Path) -> None:
    path = make_scene(
        tmp_path / "s.tif", grey(400, 300), transform=Affine.identity(), compress="deflate", tiled=True, blockxsize=64, blockysize=64
    )
    scene = Scene.describe(path)
    expected = {view.shape: view.read(Window.of(view.shape)) for view in (scene, scene.resampled((230, 170)))}
    wrong: list[str] = []

    def look(view: Scene) -> None:
        pixels, valid = expected[view.shape]
        for _ in range(5):
            with view.reader() as reader:
                for window in Window.of(view.shape).split(70, 130):
                    there = window.within(Window.of(view.shape))
                    found, kept = reader.read(window)
                    if not (np.array_equal(found, pixels[:, *there]) and np.array_equal(kept, valid[there])):
                        wrong.append(str(window))

    threads = [threading.Thread(target=look, args=(view,)) for view in (scene, scene.resampled((230, 170))) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


ODD = SHARED / "data" / "odd_tiffs"
LOOK = """
import pathlib, sys
from geoseg.errors import GeosegError
from geoseg.scene import Scene
from geoseg.window import Window


def peak_mb():
    line = next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024

for path in sys.argv[1:]:
    try:
        scene = Scene.describe(path, bands=("red", "green", "blue"))
        scene.facts()
        if scene.dtype != "uint8":
            scene.stretch()
        with scene.reader() as reader:
            if not reader.empty(Window.of(scene.shape)):
                for window in Window.of(scene.shape).split(1024, 1024):
                    reader.read(window)
        if scene.shape[0] * scene.shape[1] < 1e7:
            scene.resampled((33, 44)).read(Window(-1, -1, 40, 50))
        told = "ok"
    except GeosegError as error:
        told = str(error)
        assert told.isprintable() and path in told, told
    print(path, peak_mb(), told, sep="\t")
"""


@pytest.mark.skipif(not ODD.exists(), reason="the odd TIFFs are not beside this repository")
def test_odd_tiffs_are_read_or_refused_quietly() -> None:
    """In a process of its own, so that what GDAL itself might print is seen."""
    with (ODD / "manifest.tsv").open() as file:
        classes = {str(ODD / row["file"]): row["class"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    ran = subprocess.run([sys.executable, "-W", "error", "-c", LOOK, *classes], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    answers = [line.split("\t") for line in ran.stdout.splitlines()]
    assert len(answers) == len(classes)
    for path, megabytes, told in answers:
        assert float(megabytes) < 1500, path
        if classes[path] == "process":
            assert told == "ok", path
        elif classes[path] == "error":
            assert told != "ok", path


@pytest.mark.skipif(not ODD.exists(), reason="the odd TIFFs are not beside this repository")
def test_an_empty_scene_is_seen_to_be_empty_at_once() -> None:
    began = time.monotonic()
    scene = Scene.describe(ODD / "synthetic" / "syn__sparse_nodata_50k.tif", bands=RGB)
    with scene.reader() as reader:
        assert reader.empty(Window.of(scene.shape))
        assert not reader.valid(Window(0, 0, 50_000, 2000)).any()
    assert time.monotonic() - began < 2
