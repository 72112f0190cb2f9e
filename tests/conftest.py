"""Scenes made to order, shared by all tests."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: pytest-xdist shares out the cores already

SHARED = Path(__file__).parents[2] / "shared"
"""Large test data beside the repository; tests that use it skip where it is absent."""

PLACE = Affine(0.1, 0.0, 350_000.0, 0.0, -0.1, 3_060_000.0)
"""Where a scene lies that says nothing else: 10 cm pixels, north up, in EPSG:32645."""

# The same examples every time, so that a test that passed passes again; `make explore` looks for new ones.
settings.register_profile("geoseg", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=500)
settings.load_profile("geoseg")


def make_scene(
    path: Path | str,
    pixels: NDArray[Any],
    *,
    crs: Any = "EPSG:32645",
    transform: Affine | None = None,
    nodata: float | None = None,
    mask: NDArray[np.bool_] | None = None,
    alpha: bool = False,
    colours: Sequence[str] | None = None,
    descriptions: Sequence[str | None] | None = None,
    **profile: Any,
) -> Path:
    """Write a GeoTIFF.

    Args:
        path: target.
        pixels: ``(B, H, W)``, the alpha band included.
        crs: anything rasterio takes; None for no CRS.
        transform: None for ``PLACE``; the identity for no transform at all.
        nodata: value for the nodata tag.
        mask: ``(H, W)``, True = data; becomes the file's own mask.
        alpha: whether the last band is alpha.
        colours: colour interpretation of each band, in GDAL's words; None leaves what GDAL says of itself.
        descriptions: of each band.
        profile: further creation options (``tiled``, ``blockxsize``, ``compress``, ``interleave``, ``gcps``, ...).
    """
    path = Path(path)
    transform = PLACE if transform is None else transform
    place = {} if transform == Affine.identity() else {"transform": transform}
    bands, height, width = pixels.shape
    options = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": pixels.dtype, "crs": crs, "nodata": nodata}
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **options, **place, **profile) as file:
            if alpha:
                colours = ("red", "green", "blue", "alpha") if bands == 4 else ("gray", *["undefined"] * (bands - 2), "alpha")
            if colours is not None:
                file.colorinterp = [ColorInterp[name] for name in colours]
            for number, text in enumerate(descriptions or (), 1):
                if text is not None:
                    file.set_band_description(number, text)
            file.write(pixels)
            if mask is not None:
                file.write_mask(mask)
    return path


@dataclass(frozen=True)
class Recipe:
    """A scene that can be written, and what must be read back.

    Attributes:
        pixels: ``(3, H, W)`` red, green, blue.
        valid: ``(H, W)`` bool.
        stored: ``(B, H, W)``, what is written: with an alpha band where there is one.
        options: for ``make_scene``.
    """

    pixels: NDArray[Any]
    valid: NDArray[np.bool_]
    stored: NDArray[Any]
    options: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path | str) -> Path:
        """Write it as a GeoTIFF."""
        return make_scene(path, self.stored, **self.options)


_NODATA = {"uint8": (0, 255, 7), "uint16": (0, 65535), "int16": (-9999, 0), "float32": (-9999.0, float("nan"), -3.4028234663852886e38)}
_LAYOUTS: tuple[dict[str, Any], ...] = (
    {},
    {"blockysize": 1},
    {"tiled": True, "blockxsize": 16, "blockysize": 16},
    {"tiled": True, "blockxsize": 32, "blockysize": 16, "compress": "deflate", "sparse_ok": True},
    {"interleave": "band", "compress": "lzw", "tiled": True, "blockxsize": 16, "blockysize": 16, "sparse_ok": True},
)


@st.composite
def recipes(draw: st.DrawFn, dtypes: Sequence[str] = ("uint8", "uint16", "int16", "float32"), most: int = 60) -> Recipe:
    """Scenes of any small size, type, layout and way to say that a pixel is no data."""
    shape = (draw(st.integers(1, most)), draw(st.integers(1, most)))
    dtype = draw(st.sampled_from(dtypes))
    kind = draw(st.sampled_from(["all", "nodata", "alpha", "mask"]))
    options: dict[str, Any] = dict(draw(st.sampled_from(_LAYOUTS)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pixels = rng.integers(1, 120, (3, *shape)).astype(dtype)
    valid = np.ones(shape, bool)
    if kind != "all":
        for _ in range(draw(st.integers(0, 3))):
            row, col = rng.integers(0, shape[0]), rng.integers(0, shape[1])
            valid[row : row + rng.integers(1, 40), col : col + rng.integers(1, 40)] = False
        valid &= rng.random(shape) > draw(st.sampled_from([0.0, 0.1]))
    stored = pixels
    if kind == "nodata":
        options["nodata"] = draw(st.sampled_from(_NODATA[dtype]))
        if options["nodata"] == options["nodata"]:
            pixels[0][rng.random(shape) < 0.1] = options["nodata"]
            pixels[1] = np.where(pixels[1] == options["nodata"], 1, pixels[1])
        pixels[:, ~valid] = options["nodata"]
    elif kind == "alpha":
        opaque = rng.integers(1, 120, shape) if draw(st.booleans()) else np.full(shape, 120)
        stored = np.concatenate([pixels, np.where(valid, opaque, 0)[None].astype(dtype)])
        options |= {"alpha": True}
    elif kind == "mask":
        options["mask"] = valid.copy()
    if dtype == "float32" and draw(st.booleans()):
        spoilt = rng.random(shape) < 0.05
        pixels[rng.integers(0, 3)][spoilt] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
        stored[:3] = pixels
        valid = valid & ~spoilt
    if kind != "alpha":
        options["colours"] = ("red", "green", "blue")
    return Recipe(pixels, valid, stored, options)


@st.composite
def windows(draw: st.DrawFn, reach: int = 90) -> tuple[int, int, int, int]:
    """Row, col, height and width of a rectangle anywhere around a small scene."""
    return (
        draw(st.integers(-reach // 2, reach)),
        draw(st.integers(-reach // 2, reach)),
        draw(st.integers(1, reach)),
        draw(st.integers(1, reach)),
    )
