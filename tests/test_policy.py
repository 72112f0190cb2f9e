"""What is opened, and what is refused before GDAL sees it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from geoseg.errors import SceneError
from geoseg.policy import Policy, admit, hidden_sidecars, printable
from geoseg.scene import Scene
from geoseg.window import Window
from tests.conftest import make_scene

TRUSTING = Policy(allow_vrt=True)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return make_scene(tmp_path / "scene.tif", np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8))


def refusal(path: Path | str, policy: Policy | None = None) -> str:
    with pytest.raises(SceneError) as caught:
        admit(path, policy or Policy())
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(printable(os.fspath(path)))
    return message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"II*\0\x08\0", "cut off"),
        (b"II", "cut off"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"\r\n<!DOCTYPE html><html>404</html>", "web page"),
        (b"\xef\xbb\xbf<HTML>", "web page"),
        (b"<VRTDataset rasterXSize='1'>", "--allow-vrt"),
        (b"<GDAL_WMS></GDAL_WMS>", "is XML"),
        (bytes(4096), "zero bytes"),
        (b"\x89PNG\r\n\x1a\n", "is a PNG"),
        (b"PK\x03\x04....", "is a ZIP"),
        (b"\x1b]0;owned\x07", "is not a TIFF"),
    ],
)
def test_files_that_are_no_tiff_are_named_for_what_they_are(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "scene.tif"
    path.write_bytes(content)
    assert told in refusal(path)


@pytest.mark.parametrize(
    "address",
    [
        "http://example.org/scene.tif",
        "s3://bucket/scene.tif",
        "/vsicurl/http://example.org/scene.tif",
        "/vsizip/scene.zip/scene.tif",
        "/usr/../vsimem/scene.tif",
        "zip:scene.zip!scene.tif",
        "GTIFF_DIR:1:scene.tif",
        "HDF5:scene.h5://a",
        "\0",
        "caf\udce9.tif",
    ],
)
def test_addresses_are_no_files(address: str) -> None:
    assert "local files" in refusal(address) or "UTF-8" in refusal(address)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    assert "named pipe" in refusal(tmp_path / "pipe.tif")
    assert "folder" in refusal(tmp_path)
    assert "device" in refusal("/dev/null")
    assert "no such file" in refusal(tmp_path / "missing.tif")
    assert "no such file" in refusal("scene.tif/")
    (tmp_path / "loop.tif").symlink_to(tmp_path / "loop.tif")
    assert "cannot be found" in refusal(tmp_path / "loop.tif")
    assert "cannot be found" in refusal("a" * 5000)
    (tmp_path / "dangling.tif").symlink_to(tmp_path / "missing.tif")
    assert "no such file" in refusal(tmp_path / "dangling.tif")
    (tmp_path / "pipe_link.tif").symlink_to(tmp_path / "pipe.tif")
    assert "named pipe" in refusal(tmp_path / "pipe_link.tif")


def test_an_unreadable_file_says_so(scene: Path) -> None:
    scene.chmod(0)
    if os.access(scene, os.R_OK):
        pytest.skip("this user may read everything")
    assert "Permission denied" in refusal(scene)


def test_a_link_to_a_tiff_is_its_target(scene: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(scene)
    assert admit(tmp_path / "link", Policy()).address == str(scene.resolve())


@pytest.mark.parametrize("name", ["a:b.tif", "zip:x.tif", "a b#?!.tif", "ü 北.tif", "$(id).tif", "a,1.tif"])
def test_odd_names_of_real_files_are_fine(scene: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert Scene.describe(name).read(Window(0, 0, 8, 8))[1].all()


def test_names_are_shown_without_control_characters(tmp_path: Path) -> None:
    assert "\\x1b[2J" in refusal(tmp_path / "\x1b[2J\nscene.tif")
    assert printable("a\n\t b\u202e\x07") == "a b\\u202e\\x07"


def mosaic(path: Path, source: str, *, relative: int = 1, band: str = "", extra: str = "") -> Path:
    path.write_text(
        f"""<VRTDataset rasterXSize="8" rasterYSize="8"><GeoTransform>350000, 0.1, 0, 3060000, 0, -0.1</GeoTransform>{extra}
        {
            "".join(
                f'''<VRTRasterBand dataType="Byte" band="{b}" {band}><ColorInterp>{c}</ColorInterp><SimpleSource>
        <SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>{b}</SourceBand></SimpleSource></VRTRasterBand>'''
                for b, c in ((1, "Red"), (2, "Green"), (3, "Blue"))
            )
        }</VRTDataset>""".lstrip()
    )
    return path


def test_a_mosaic_of_tiffs_below_it_is_read_where_vrts_are_allowed(scene: Path, tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    scene.rename(tmp_path / "tiles" / "scene.tif")
    for path in (
        mosaic(tmp_path / "mosaic.vrt", "tiles/scene.tif"),
        mosaic(tmp_path / "absolute.vrt", str(tmp_path / "tiles" / "scene.tif"), relative=0),
    ):
        described = Scene.describe(path, bands=("blue", "green", "red"), policy=TRUSTING)
        assert described.sources == (str(tmp_path / "tiles" / "scene.tif"),)
        pixels, valid = described.read(Window(-1, 0, 4, 8))
        assert pixels[0, 1, 0] == 128
        assert valid.sum() == 24
        assert described.sha256() != Scene.describe(tmp_path / "tiles" / "scene.tif").sha256()
        assert "--allow-vrt" in refusal(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"source": "/etc/passwd", "relative": 0}, "not a TIFF"),
        ({"source": "../../../../../../../../../../etc/passwd"}, "not a TIFF"),
        ({"source": "../scene.tif"}, "not under its own folder"),
        ({"source": " inner.tif"}, "not under its own folder"),
        ({"source": "missing.tif"}, "no such file"),
        ({"source": "http://example.org/a.tif"}, "local files"),
        ({"source": "/vsicurl/http://example.org/a.tif", "relative": 0}, "local files"),
        ({"source": "self.vrt"}, "--allow-vrt"),
        ({"source": ""}, "folder"),
        ({"source": "inner.tif", "band": 'subClass="VRTRawRasterBand"'}, "more than a mosaic"),
        ({"source": "inner.tif", "band": 'subClass="VRTDerivedRasterBand"'}, "more than a mosaic"),
        ({"source": "inner.tif", "band": 'subclass="VRTDerivedRasterBand"'}, "more than a mosaic"),
        ({"source": "inner.tif", "band": 'SourceFilename="/etc/passwd"'}, "more than a mosaic"),
        ({"source": "inner.tif", "extra": "<PixelFunctionCode>open('x')</PixelFunctionCode>"}, "more than a mosaic"),
        ({"source": "inner.tif", "extra": "<GDALWarpOptions/>"}, "more than a mosaic"),
        ({"source": "inner.tif<!-- x -->"}, "comments"),
        ({"source": "inner.tif<b/>"}, "more than a mosaic"),
        ({"source": "inner.tif", "extra": "<SRS>"}, "does not parse"),
    ],
)
def test_a_vrt_that_reaches_further_is_refused(scene: Path, tmp_path: Path, change: dict[str, str], told: str) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "inner.tif").write_bytes(scene.read_bytes())
    path = mosaic(tmp_path / "inner" / "self.vrt", **{"source": "inner.tif", **change})  # type: ignore[arg-type]
    with pytest.raises(SceneError) as caught:
        admit(path, TRUSTING)
    assert told in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).isprintable()


def test_a_vrt_of_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nothing.vrt"
    path.write_text('<VRTDataset rasterXSize="8" rasterYSize="8"></VRTDataset>')
    assert "without any source" in refusal(path, TRUSTING)


AUX = """<PAMDataset><GeoTransform>0, 9, 0, 0, 0, -9</GeoTransform>
<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">evil.vrt</MDI></Metadata></PAMDataset>"""


@pytest.mark.parametrize("policy", [Policy(), Policy(sidecars=True)])
def test_aux_xml_is_never_believed(scene: Path, policy: Policy) -> None:
    Path(f"{scene}.aux.xml").write_text(AUX)
    described = Scene.describe(scene, policy=policy)
    assert described.grid.transform.a == 0.1
    assert described.facts()["overviews"] == []


def test_a_mask_beside_the_file_counts_only_if_asked(scene: Path) -> None:
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="NO"), rasterio.open(scene, "r+") as file:
        file.write_mask(np.arange(64).reshape(8, 8) < 16)
    assert hidden_sidecars(str(scene)) == ("scene.tif.msk",)
    strict, open_minded = Scene.describe(scene), Scene.describe(scene, policy=Policy(sidecars=True))
    assert "scene.tif.msk" in strict.warnings[-1]
    assert (strict.masked, open_minded.masked) == (False, True)
    assert strict.read(Window(0, 0, 8, 8))[1].sum() == 64
    assert open_minded.read(Window(0, 0, 8, 8))[1].sum() == 16


def test_a_world_file_counts_only_if_asked(tmp_path: Path) -> None:
    path = make_scene(tmp_path / "scene.tif", np.ones((3, 8, 8), np.uint8), crs=None, transform=Affine.identity())
    path.with_suffix(".tfw").write_text("2\n0\n0\n-2\n101\n199\n")
    assert Scene.describe(path).grid.transform == Affine.identity()
    assert Scene.describe(path, policy=Policy(sidecars=True)).grid.transform == Affine(2, 0, 100, 0, -2, 200)


def test_a_sidecar_that_is_no_tiff_is_refused(scene: Path) -> None:
    Path(f"{scene}.ovr").write_text("<VRTDataset/>")
    assert "scene.tif.ovr beside it is not a TIFF" in refusal(scene, Policy(sidecars=True))
    assert admit(scene, Policy()).driver == "GTiff"


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ({"max_pixels": 63}, "8 x 8 pixels, more than the limit of 63"),
        ({"max_bands": 2}, "3 bands"),
        ({"max_block_bytes": 191}, "blocks of 8 x 8 pixels"),
        ({"max_blocks": 0}, "1 blocks"),
        ({"dtypes": ("float32",)}, "type uint8"),
    ],
)
def test_limits_hold_before_anything_is_read(scene: Path, limit: dict[str, int], told: str) -> None:
    with pytest.raises(SceneError) as caught:
        Scene.describe(scene, policy=Policy(**limit))  # type: ignore[arg-type]
    assert told in str(caught.value)
    assert str(caught.value).startswith(str(scene))


def test_a_decompression_bomb_is_refused_unless_it_is_wanted(tmp_path: Path) -> None:
    """6000 x 6000 equal pixels in one tile: 103 MB out of a few kilobytes."""
    pixels = np.zeros((3, 6000, 6000), np.uint8)
    path = make_scene(tmp_path / "bomb.tif", pixels, compress="zstd", tiled=True, blockxsize=6016, blockysize=6016, interleave="pixel")
    with pytest.raises(SceneError, match=r"blocks that are [\d,]+ times as large as the whole file when decoded"):
        Scene.describe(path)
    assert Scene.describe(path, policy=Policy(max_expansion=10**6)).shape == (6000, 6000)
