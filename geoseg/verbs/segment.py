"""A labelled array into classes, lazily: the same blocks and the same answer as ``predict``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geoseg.card import ModelCard
from geoseg.engine import NEAR, Options, Plan, make_plan, predict_block
from geoseg.errors import BandsError, OptionsError, ResolutionError
from geoseg.models import locate
from geoseg.models import read as read_model
from geoseg.polygons.measure import pixel_areas
from geoseg.segmenter import Segmenter
from geoseg.window import Window

if TYPE_CHECKING:
    import xarray as xr

BLOCK = 4096


@dataclass(frozen=True)
class ArraySource:
    """Pixels in memory that read like a scene.

    Attributes:
        pixels: ``(B, H, W)``, the part of the grid that is held.
        valid: ``(H, W)`` bool, of the same part.
        window: which part.
        shape: height and width of the whole grid.
    """

    pixels: np.ndarray
    valid_pixels: np.ndarray
    window: Window
    shape: tuple[int, int]

    @contextmanager
    def reader(self) -> Iterator[ArraySource]:
        """Nothing to open."""
        yield self

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Pixels ``(B, h, w)`` and validity ``(h, w)``; 0 and not valid outside of what is held."""
        pixels = np.zeros((len(self.pixels), *window.shape), self.pixels.dtype)
        if common := window & self.window:
            pixels[:, *common.within(window)] = self.pixels[:, *common.within(self.window)]
        return pixels, self.valid(window)

    def empty(self, window: Window) -> bool:
        """Whether nothing in the window is valid."""
        return not self.valid(window).any()

    def valid(self, window: Window) -> np.ndarray:
        """Validity alone, ``(h, w)`` bool."""
        valid = np.zeros(window.shape, bool)
        if common := window & self.window:
            valid[common.within(window)] = self.valid_pixels[common.within(self.window)]
        return valid


def segment(
    pixels: xr.DataArray, model: str | Path = "default", *, options: Options | None = None, device: str = "auto", block: int = BLOCK
) -> xr.Dataset:
    """Classify a DataArray, lazily over Dask: nothing is read or computed before the result is.

    The blocks are those of ``predict`` and so is the answer. The array must already have about the model's pixel size
    (``odc.geo.xr``'s ``reproject`` or ``rio.reproject`` bring it there); a file of any pixel size is ``predict``'s work.

    Args:
        pixels: dimensions ``(band, y, x)``, bands in the model's order, of the card's dtype; NaN and the nodata value that
            rioxarray knows are no data. Georeferenced as rioxarray or odc-geo do it.
        model: name of a known model, its folder, or an ONNX file (``geoseg.deepness``).
        options: what overrides the card.
        device: where the workers compute.
        block: largest side of a block, pixels.

    Returns:
        Dataset with ``classes`` (y, x) uint8, 0 where there is no data, and ``confidence`` (y, x) float32, NaN there; on the
        coordinates and CRS of ``pixels``.

    Raises:
        BandsError: if the number of bands is not the model's.
        OptionsError: if the array does not have three dimensions or has another dtype than the card's.
        ResolutionError: if the pixel size is not about the model's.
    """
    import dask.array as da
    import xarray as xr
    from dask.delayed import delayed
    from odc.geo.xr import xr_coords

    folder = str(locate(model))
    card, _ = read_model(folder)
    _check(pixels, card)
    grid = pixels.odc.geobox
    height, width = pixels.shape[1:]
    pixel_m = None if grid is None or grid.crs is None else float(np.sqrt(pixel_areas(grid, np.array([[width / 2, height / 2]]))[0]))
    if pixel_m and not 1 / NEAR <= pixel_m / card.resolution_m <= NEAR:
        raise ResolutionError(
            f"pixels are {pixel_m:.3g} m, model {card.name!r} needs {card.resolution_m:.3g} m; "
            "reproject the array first, or use predict on the file"
        )
    whole = ArraySource(np.zeros((0, 0, 0)), np.zeros((0, 0), bool), Window(0, 0, height, width), (height, width))
    plan = make_plan(whole, card, options or Options(), pixel_m=None, stretch=None)
    nodata = pixels.rio.nodata
    rows: dict[int, list[Any]] = {}
    for core in plan.cores(block):
        span = _span(plan, core)
        held = pixels[:, span.row : span.end_row, span.col : span.end_col].data
        answer = delayed(_answer, pure=True)(held, nodata, plan, core, span, folder, options or Options(), device)
        rows.setdefault(core.row, []).append(da.from_delayed(answer, (2, *core.shape), np.uint8))
    layers = da.concatenate([da.concatenate(parts, axis=2) for parts in rows.values()], axis=1)
    coords = xr_coords(grid) if grid is not None else {name: pixels.coords[name] for name in pixels.dims[1:] if name in pixels.coords}
    confidence = da.where(layers[1] == 255, np.float32(np.nan), layers[1].astype(np.float32) / np.float32(254))
    result = xr.Dataset({"classes": (pixels.dims[1:], layers[0]), "confidence": (pixels.dims[1:], confidence)}, coords=coords)
    result["classes"].attrs = {
        "legend": {c.id: c.name for c in card.legend.classes},
        "model": f"{card.name} {card.version}",
        "model_sha256": card.sha256,
        "_FillValue": 0,
    }
    return result


def _check(pixels: xr.DataArray, card: ModelCard) -> None:
    if pixels.ndim != 3:
        raise OptionsError(f"array has dimensions {pixels.dims}; expected (band, y, x)")
    if pixels.shape[0] != len(card.bands):
        raise BandsError(
            f"array has {pixels.shape[0]} bands; model {card.name!r} needs {len(card.bands)}: {', '.join(card.bands)}; "
            "select them with .sel(band=[...])"
        )
    if pixels.dtype != card.scaling.dtype:
        raise OptionsError(f"array is {pixels.dtype}; model {card.name!r} needs {card.scaling.dtype}; scale the array first")


def _span(plan: Plan, core: Window) -> Window:
    """All pixels that the tiles of a core see."""
    seen = [tile.seen for tile in plan.tiles(core)]
    whole = Window.of(plan.scene.shape)
    span = (
        Window.between(min(w.row for w in seen), min(w.col for w in seen), max(w.end_row for w in seen), max(w.end_col for w in seen))
        & whole
    )
    assert span is not None
    return span


def _answer(
    held: np.ndarray, nodata: float | None, plan: Plan, core: Window, span: Window, folder: str, options: Options, device: str
) -> np.ndarray:
    """One block's classes and confidence, ``(2, H, W)`` uint8."""
    valid = np.isfinite(held).all(0) if held.dtype.kind == "f" else np.ones(held.shape[1:], bool)
    if nodata is not None and not np.isnan(nodata):
        valid &= (held != nodata).any(0)
    source = ArraySource(held, valid, span, plan.scene.shape)
    here = replace(plan, scene=source, seen=source, scores=False)
    return np.concatenate([values for _, values in predict_block(here, core, _segmenter(folder, options, device))], axis=1)


@cache
def _segmenter(folder: str, options: Options, device: str) -> Segmenter:
    """One model per process, however many blocks it answers."""
    return Segmenter.load(folder, device=device, precision=options.precision, tta=options.tta)
