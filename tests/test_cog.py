"""Class and scalar rasters: what is read back is what was given, on its grid, or nothing is there."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rio_cogeo.cogeo import cog_validate

from geoseg import __version__, cog
from geoseg.cog import preview, write_cog, write_scalar_cog
from geoseg.errors import CoverageError, OutputError, ReadError
from geoseg.legend import ISPRS
from geoseg.window import Window

NORTH_UP = Affine(0.1, 0, 500000, 0, -0.1, 5800000)
CHECKS = Path(__file__).parents[2] / "shared" / "checks"


def grid_of(array: np.ndarray, transform: Affine = NORTH_UP, crs: Any = "EPSG:25832") -> GeoBox:
    return GeoBox(array.shape[-2:], transform, crs)


def cut(array: np.ndarray, height: int = 512, width: int = 512, seed: int | None = None) -> list[tuple[Window, np.ndarray]]:
    whole = Window.of(array.shape[-2:])
    pieces = [(window, array[(..., *window.within(whole))]) for window in whole.split(height, width)]
    if seed is not None:
        np.random.default_rng(seed).shuffle(pieces)  # type: ignore[arg-type]
        pieces = [(Window(*(int(x) for x in (w.row, w.col, w.height, w.width))), a) for w, a in pieces]
    return pieces


def land(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Patches of the six classes with single odd pixels and a corner without data."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(1, 7, (height // 17 + 1, width // 17 + 1), dtype=np.uint8)
    classes = np.kron(patches, np.ones((17, 17), np.uint8))[:height, :width].copy()
    odd = rng.random(classes.shape) < 0.02
    classes[odd] = rng.integers(0, 7, int(odd.sum()), dtype=np.uint8)
    classes[: height // 5, : width // 5] = 0
    return classes


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_pieces_in_any_order_read_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    side = st.sampled_from([1, 2, 3, 17, 300, 511, 512, 513, 1031])
    classes = land(data.draw(side), data.draw(side), seed=data.draw(st.integers(0, 99)))
    pieces = cut(
        classes,
        data.draw(st.sampled_from([97, 512, 1024])),
        data.draw(st.sampled_from([97, 512, 1024])),
        seed=data.draw(st.integers(0, 99)),
    )
    path = tmp_path_factory.mktemp("cog") / "classes.tif"
    counts = write_cog(pieces, path, grid_of(classes), ISPRS, {})
    with rasterio.open(path) as raster:
        assert np.array_equal(raster.read(1), classes)
    assert np.array_equal(counts, np.bincount(classes.ravel(), minlength=256))
    assert left(path.parent) == {"classes.tif", "classes.tif.aux.xml"}


def test_bytes_depend_on_the_pixels_only(tmp_path: Path) -> None:
    classes = land(1500, 1300)
    for name, pieces in {"a": cut(classes), "b": cut(classes, 384, 1300), "c": cut(classes, seed=1), "d": cut(classes, 2000, 2000)}.items():
        write_cog(pieces, tmp_path / f"{name}.tif", grid_of(classes), ISPRS, {"GEOSEG_MODEL": "m"})
    one_core = (
        "import os, numpy as np; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from test_cog import *\n"
        "classes = land(1500, 1300); write_cog(cut(classes), 'e.tif', grid_of(classes), ISPRS, {'GEOSEG_MODEL': 'm'})"
    )
    subprocess.run([sys.executable, "-c", one_core], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)}, check=True)
    assert len({(tmp_path / f"{name}.tif").read_bytes() for name in "abcde"}) == 1
    assert len({(tmp_path / f"{name}.tif.aux.xml").read_bytes() for name in "abcde"}) == 1


@pytest.mark.parametrize(
    ("transform", "crs"),
    [
        (NORTH_UP, "EPSG:32645"),
        (Affine(0.1, 0, 5e5, 0, 0.1, 58e5), "EPSG:25832"),
        (Affine(0.17, 0.05, 5e5, 0.1, -0.09, 58e5), "EPSG:25832"),
        (Affine(1e-6, 0, 85.5, 0, -1e-6, 27.6), "EPSG:4326"),
        (NORTH_UP, None),
        (Affine.identity(), None),
        (NORTH_UP, "EPSG:7415"),
        (NORTH_UP, CRS.from_user_input("EPSG:25832+7837").to_wkt()),
        (NORTH_UP, "+proj=tmerc +lat_0=0 +lon_0=15 +x_0=500000 +ellps=bessel +towgs84=577.3,90.1,463.9,5.1,1.5,5.3,2.4 +units=m +type=crs"),
        (NORTH_UP, 'LOCAL_CS["site grid",UNIT["metre",1]]'),
    ],
)
def test_the_grid_is_the_scenes_own(tmp_path: Path, transform: Affine, crs: str | None) -> None:
    classes, source = land(40, 60), tmp_path / "scene.tif"
    with rasterio.open(source, "w", driver="GTiff", height=40, width=60, count=1, dtype="uint8", crs=crs, transform=transform) as raster:
        raster.write(classes, 1)
    with rasterio.open(source) as scene:
        write_cog(cut(classes), tmp_path / "classes.tif", GeoBox.from_rio(scene), ISPRS, {})
        with rasterio.open(tmp_path / "classes.tif") as raster:
            assert (raster.shape, raster.transform, raster.crs) == (scene.shape, scene.transform, scene.crs)
            assert (raster.crs and raster.crs.to_wkt()) == (scene.crs and scene.crs.to_wkt())


def test_it_is_a_cog_whose_overviews_hold_the_classes_of_their_pixels(tmp_path: Path) -> None:
    classes, path = land(1200, 1600), tmp_path / "classes.tif"
    write_cog(cut(classes), path, grid_of(classes), ISPRS, {})
    fine, errors, remarks = cog_validate(path, strict=True, quiet=True)
    assert fine, errors + remarks
    with rasterio.open(path, overview_level=0) as raster:
        half = raster.read(1)
    fours = classes.reshape(600, 2, 800, 2).transpose(0, 2, 1, 3).reshape(600, 800, 4)
    assert (fours == half[..., np.newaxis]).any(-1).all()


def test_a_preview_shows_the_most_frequent_classes(tmp_path: Path) -> None:
    classes = np.kron(land(30, 40), np.ones((48, 48), np.uint8))
    write_cog(cut(classes), tmp_path / "c.tif", grid_of(classes), ISPRS, {})
    assert np.array_equal(preview(tmp_path / "c.tif", (30, 40)), classes[24::48, 24::48])
    with pytest.raises(ReadError, match=r"missing\.tif"):
        preview(tmp_path / "missing.tif", (3, 4))


def test_names_colours_statistics_and_tags(tmp_path: Path) -> None:
    classes, path = land(600, 700), tmp_path / "classes.tif"
    counts = write_cog(cut(classes), path, grid_of(classes), ISPRS, {"GEOSEG_MODEL": "tiny <&> 1"})
    valid = classes[classes > 0]
    with rasterio.open(path) as raster:
        assert raster.nodata == 0
        assert raster.descriptions == ("class",)
        assert raster.colorinterp == (ColorInterp.palette,)
        palette = raster.colormap(1)
        tags, statistics = raster.tags(), raster.tags(1)
    assert {c.id: (*c.rgb, 255) for c in ISPRS.classes}.items() <= palette.items()
    assert tags["TIFFTAG_SOFTWARE"] == f"geoseg {__version__}"
    assert tags["GEOSEG_MODEL"] == "tiny <&> 1"
    assert "TIFFTAG_DATETIME" not in tags
    assert float(statistics["STATISTICS_MEAN"]) == pytest.approx(valid.mean())
    assert float(statistics["STATISTICS_STDDEV"]) == pytest.approx(valid.std())
    assert (statistics["STATISTICS_MINIMUM"], statistics["STATISTICS_MAXIMUM"]) == ("1", "6")
    assert float(statistics["STATISTICS_VALID_PERCENT"]) == pytest.approx(100 * valid.size / classes.size, abs=0.01)
    band = ElementTree.parse(f"{path}.aux.xml").getroot().find("PAMRasterBand")
    assert band is not None
    assert [name.text for name in band.findall("CategoryNames/Category")] == ["no data", *(c.name for c in ISPRS.classes)]
    table = band.find("GDALRasterAttributeTable")
    assert table is not None
    assert table.get("tableType") == "thematic"
    rows = [[cell.text for cell in row] for row in table.findall("Row")]
    assert rows == [[str(x) for x in (c.id, counts[c.id], c.name, *c.rgb, 255, c.title)] for c in ISPRS.classes]


def test_a_scene_without_data_has_no_statistics(tmp_path: Path) -> None:
    counts = write_cog(cut(np.zeros((30, 40), np.uint8)), tmp_path / "c.tif", grid_of(np.zeros((30, 40))), ISPRS, {})
    assert counts[0] == 1200
    with rasterio.open(tmp_path / "c.tif") as raster:
        assert not raster.read(1).any()
        assert "STATISTICS_MEAN" not in raster.tags(1)


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 6])
def test_scalars_have_scale_names_and_averaged_overviews(tmp_path: Path, bands: int) -> None:
    values = np.random.default_rng(0).integers(0, 255, (bands, 700, 600), dtype=np.uint8)
    values[:, :100, :100] = cog.SCALAR_NODATA
    names, path = [f"class_{band}" for band in range(bands)], tmp_path / "scores.tif"
    pieces = cut(values) if bands > 1 else cut(values[0])
    (tmp_path / "scores.tif.aux.xml").write_text("<PAMDataset/>")
    write_scalar_cog(pieces, path, grid_of(values), names, {"GEOSEG_MODEL": "m"})
    assert left(tmp_path) == {"scores.tif"}
    assert cog_validate(path, strict=True, quiet=True)[0]
    with rasterio.open(path) as raster:
        assert np.array_equal(raster.read(), values)
        assert raster.descriptions == tuple(names)
        assert raster.scales == (pytest.approx(1 / 254),) * bands
        assert raster.nodata == 255
        assert ColorInterp.alpha not in raster.colorinterp
        assert np.array_equal(raster.read_masks(bands) > 0, values[-1] != 255)
    with rasterio.open(path, overview_level=0) as raster:
        assert raster.read(1)[100:300, 100:300].mean() == pytest.approx(values[0, 200:600, 200:600].mean(), abs=1)


@pytest.mark.parametrize("target", ["missing/classes.tif", "file/classes.tif", "folder"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=str(tmp_path / target)) as refusal:
        write_cog(cut(land(9, 9)), tmp_path / target, grid_of(land(9, 9)), ISPRS, {})
    assert "\n" not in str(refusal.value)
    assert left(tmp_path) == {"file", "folder"}


def test_a_failure_of_the_pieces_goes_through_and_leaves_the_old_map(tmp_path: Path) -> None:
    classes = land(600, 600)
    write_cog(cut(classes), tmp_path / "c.tif", grid_of(classes), ISPRS, {})
    before = (tmp_path / "c.tif").read_bytes()

    def pieces() -> Iterator[tuple[Window, np.ndarray]]:
        yield cut(classes)[0]
        raise ReadError("scene.tif: block 3 cannot be decoded")

    with pytest.raises(ReadError, match="block 3"):
        write_cog(pieces(), tmp_path / "c.tif", grid_of(classes), ISPRS, {})
    assert left(tmp_path) == {"c.tif", "c.tif.aux.xml"}
    assert (tmp_path / "c.tif").read_bytes() == before


def test_gaps_strangers_and_misfits_are_refused(tmp_path: Path) -> None:
    classes = land(600, 600)
    stranger, grid = np.full_like(classes, 9), grid_of(classes)
    misfit = [(Window(0, 0, 600, 600), classes[:599])]
    outside = [(Window(0, 1, 600, 600), classes)]
    for pieces, words in (
        (cut(classes)[:-1], "cover"),
        (cut(stranger), "not in legend"),
        (misfit, "does not fit"),
        (outside, "does not fit"),
    ):
        with pytest.raises(CoverageError, match=words):
            write_cog(pieces, tmp_path / "c.tif", grid, ISPRS, {})
    assert not left(tmp_path)


def test_a_file_that_reads_back_otherwise_is_refused(tmp_path: Path) -> None:
    classes, path = land(50, 50), tmp_path / "c.tif"
    write_cog(cut(classes), path, grid_of(classes), ISPRS, {})
    with pytest.raises(OutputError, match="reads back otherwise"):
        cog._verify(path, [(Window(0, 0, 50, 50), 0)], path)


LIMITED = """
import resource, sys
from pathlib import Path
from test_cog import *
limit = int(sys.argv[1])
classes = np.random.default_rng(0).integers(1, 7, (1500, 1500), dtype=np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    write_cog(cut(classes), sys.argv[2], grid_of(classes), ISPRS, {})
except OutputError as error:
    print(error)
    sys.exit(2)
"""


def run_limited(limit: int, path: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), str(path)], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("limit", [0, 100_000, 900_000, 1_000_000])
def test_a_file_that_may_not_grow_is_refused_whole(tmp_path: Path, limit: int) -> None:
    done = run_limited(limit, tmp_path / "c.tif")
    assert done.returncode == 2, done.stderr
    assert str(tmp_path / "c.tif") in done.stdout
    assert done.stdout.count("\n") == 1
    assert not left(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.parametrize("size_kb", [64, 1500, 2400, 3000])
def test_a_full_disk_is_refused_whole(tmp_path: Path, size_kb: int) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(tmp_path)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        done = run_limited(-1, tmp_path / "c.tif")
        assert done.returncode == 2, done.stderr
        assert "disk is full" in done.stdout
        assert not done.stderr
        assert not left(tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.skipif(not CHECKS.exists(), reason="the acceptance checks are not beside this checkout")
def test_the_acceptance_check_passes(tmp_path: Path) -> None:
    classes, path = land(1111, 900), tmp_path / "classes.tif"
    write_cog(cut(classes), path, grid_of(classes), ISPRS, {})
    wanted = ",".join(f"{c.id}={c.name}:{c.colour}" for c in ISPRS.classes)
    command = [sys.executable, str(CHECKS / "check_raster.py"), str(path), "--nodata", "0", "--classes", wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
