"""Arrays in, arrays out: lazy, georeferenced, and the answer of predict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr

import geoseg
from geoseg.errors import BandsError, OptionsError, ResolutionError
from tests.conftest import make_scene
from tests.oracles import model_folder

OPTIONS = geoseg.Options(precision="fp32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = np.random.default_rng(2).integers(1, 256, (3, 210, 170), dtype=np.uint8)
    pixels[:, 60:100, 40:90] = 0
    return make_scene(
        tmp_path_factory.mktemp("scenes") / "s.tif", pixels, nodata=0, transform=rasterio.Affine(1, 0, 354000, 0, -1, 3057000)
    )


@pytest.mark.parametrize("block", [4096, 64])
def test_the_answer_is_that_of_predict(scene: Path, model: Path, tmp_path: Path, block: int) -> None:
    geoseg.predict(scene, model, out=tmp_path, options=OPTIONS, confidence=True, vectors=False, quicklook=False)
    pixels = rioxarray.open_rasterio(scene, chunks={"x": 50, "y": 90})
    result = geoseg.segment(pixels, model, options=OPTIONS, block=block).compute()
    with rasterio.open(tmp_path / "s_classes.tif") as classes, rasterio.open(tmp_path / "s_confidence.tif") as confidence:
        np.testing.assert_array_equal(result.classes, classes.read(1))
        stored = confidence.read(1)
        np.testing.assert_allclose(result.confidence.fillna(255 / 254), stored / 254, atol=1e-6)
        assert result.rio.crs == classes.crs
        assert result.rio.transform() == classes.transform
        assert result.odc.geobox.shape == classes.shape
    assert set(result.classes.attrs["legend"].values()) == {f"class_{k}" for k in range(4)}


def test_nothing_is_read_before_it_is_asked_for_and_then_only_what_is_needed(scene: Path, model: Path) -> None:
    dask_array = pytest.importorskip("dask.array")
    read = []

    def part(block_info: dict) -> np.ndarray:
        place = block_info[None]["array-location"]
        read.append(place)
        return np.zeros([high - low for low, high in place], np.uint8)

    data = dask_array.map_blocks(part, chunks=((3,), (100,) * 10, (100,) * 10), dtype=np.uint8, meta=np.zeros((0, 0, 0), np.uint8))
    coords = {"y": 3057000 - np.arange(1000) - 0.5, "x": 354000 + np.arange(1000) + 0.5}
    pixels = xr.DataArray(data, dims=("band", "y", "x"), coords=coords).rio.write_crs("EPSG:32645")
    result = geoseg.segment(pixels, model, options=OPTIONS, block=100)
    assert not read
    result.classes[250:260, 250:260].compute()
    assert 0 < len(read) <= 9


def test_arrays_that_do_not_fit_are_refused(scene: Path, model: Path) -> None:
    pixels = rioxarray.open_rasterio(scene)
    with pytest.raises(BandsError, match="array has 2 bands"):
        geoseg.segment(pixels[:2], model)
    with pytest.raises(OptionsError, match="expected"):
        geoseg.segment(pixels[0], model)
    with pytest.raises(OptionsError, match="array is float32"):
        geoseg.segment(pixels.astype(np.float32), model)
    with pytest.raises(ResolutionError, match=r"pixels are 3\d* m"):
        geoseg.segment(pixels[:, ::3, ::3], model)
