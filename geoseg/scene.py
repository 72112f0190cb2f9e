"""A raster, described, and read by windows."""

from __future__ import annotations

import hashlib
import math
import os
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import numpy as np
import pyproj
import rasterio
import rasterio.windows
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj.exceptions import ProjError
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.env import get_gdal_config, set_gdal_config
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError

from geoseg.bands import Bands
from geoseg.errors import BandsError, GeoreferenceError, ReadError, SceneError
from geoseg.policy import Policy, admit, hidden_sidecars, printable
from geoseg.window import Window

__all__ = ["Policy", "Reader", "Scene", "Stretch"]

_ENVIRONMENT: Final = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": "{none}",
    "GTIFF_IGNORE_READ_ERRORS": "NO",
    "GDAL_NUM_THREADS": str(min(8, os.cpu_count() or 1)),
}
_SIDECARS: Final = {"GDAL_DISABLE_READDIR_ON_OPEN": "FALSE", "GDAL_GEOREF_SOURCES": "INTERNAL,WORLDFILE"}
_GDAL_ERRORS: Final = (RasterioError, CRSError, CPLE_BaseError, UnicodeDecodeError)

_BLOCK_CACHE = 96 * 2**20
_LARGE_BLOCK = 64 * 2**20
_PIECE = 64 * 2**20
_SAMPLE = 1024
_CELLS = 32
_FEW = 1000
_SHIFT_PX = 0.01  # grids that lie closer are one

_quiet = threading.Lock()


@dataclass(frozen=True, slots=True)
class Stretch:
    """One linear range per chosen band: ``low`` becomes 0, ``high`` becomes 1.

    Attributes:
        low: one value a band.
        high: one value a band, above ``low``.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]


class Reader(Protocol):
    """An open scene. It belongs to one thread; windows may lie anywhere, also outside."""

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pixels and where they are data.

        Returns:
            ``(B, h, w)`` in the scene's dtype, in memory ordered h, w, B; 0 outside the scene, anything where not valid.
            ``(h, w)`` bool, True = data.

        Raises:
            ReadError: if a block of the file cannot be decoded.
        """
        ...

    def valid(self, window: Window) -> NDArray[np.bool_]:
        """The second answer of ``read``, without decoding pixels where the file allows it.

        Raises:
            ReadError: as ``read``.
        """
        ...

    def empty(self, window: Window) -> bool:
        """True if the window surely holds no data: it lies outside, or in blocks that a sparse file leaves out. Decodes nothing."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


@dataclass(frozen=True)
class Scene:
    """A raster described: where it is, which of its pixels mean what. Holds no open file, so it pickles.

    Attributes:
        path: as it was given, made printable; names the scene in messages.
        address: absolute path that is opened, links resolved.
        grid: shape, transform and horizontal CRS (None without one). Pixel coordinates if the file has no transform.
        crs_wkt: CRS as the file has it, a vertical part included, WKT 2; None without one.
        bands: numbers of the chosen bands in the file, from 1, in the order they were asked for.
        band_names: their names, in the same order.
        dtype: of the chosen bands.
        nodata: a pixel whose chosen bands all have this value is not data; None without one.
        alpha: number of the band that is 0 where there is no data; None without one.
        masked: whether the file has a mask of its own.
        pixel_m: side of a square as large as the scene's central pixel is on the ground, metres; None where that is unknown.
        warnings: sentences about what was assumed or ignored, without the path.
        policy: what was allowed when the scene was described.
        sources: absolute paths of the files a VRT is made of.
        source: the scene this one is a resampled view of.
    """

    path: str
    address: str
    grid: GeoBox
    crs_wkt: str | None
    bands: tuple[int, ...]
    band_names: tuple[str, ...]
    dtype: str
    nodata: float | None
    alpha: int | None
    masked: bool
    pixel_m: float | None
    warnings: tuple[str, ...]
    policy: Policy
    sources: tuple[str, ...] = ()
    source: Scene | None = None

    @classmethod
    def describe(
        cls,
        path: str | os.PathLike[str],
        *,
        bands: Sequence[str] | None = None,
        indexes: Sequence[int] | None = None,
        policy: Policy | None = None,
    ) -> Scene:
        """Look at a raster without reading its pixels.

        Args:
            path: a GeoTIFF on a local disk.
            bands: names of the bands wanted (``red``, ``green``, ``blue``, ``nir``, ...), in the model's order. They are looked up in
                the colour interpretation, then in the band descriptions; plain unnamed bands are taken by position. None: all
                bands but alpha.
            indexes: numbers of the bands, from 1, in that order; overrides the search.
            policy: what may be opened; the default is the strictest.

        Raises:
            SceneError: if the file may not or cannot be opened, is too large, or of a type that is not supported.
            BandsError: if the bands wanted are not there, or cannot be told apart.
            GeoreferenceError: if the scene is placed by control points or RPCs alone, or by a transform without area.
        """
        policy = policy or Policy()
        admission = admit(path, policy)
        name = printable(os.fspath(path))
        with ExitStack() as stack:
            stack.enter_context(explained(name, f"cannot be read as {admission.driver}", SceneError))
            stack.enter_context(environment(policy))
            dataset, placed = quietly_open(admission.address, admission.driver, policy)
            stack.enter_context(dataset)
            check_size(name, dataset, policy)
            for source in admission.sources:
                with quietly_open(source, "GTiff", policy)[0] as tile:
                    check_size(f"{name}: its source {printable(source)}", tile, policy)
            _check_colours(name, dataset)
            found = Bands.of(name, [kind.name for kind in dataset.colorinterp], dataset.descriptions)
            choice = found.choose(bands, indexes)
            dtype = common_dtype(name, dataset, choice.numbers, policy)
            grid, wkt, place_notes = georeference(name, dataset, placed)
            nodata, nodata_notes = nodata_of(admission.address, dataset, choice.numbers, dtype)
            alphas = [number for number, kind in enumerate(found.kinds, 1) if kind == "alpha" and number not in choice.numbers]
            masked = any(MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags for flags in dataset.mask_flag_enums)
            notes_of_layout = layout_notes(admission.address, dataset, policy)
        return cls(
            path=name,
            address=admission.address,
            grid=grid,
            crs_wkt=wkt,
            bands=choice.numbers,
            band_names=choice.names,
            dtype=dtype,
            nodata=nodata,
            alpha=alphas[0] if alphas else None,
            masked=masked,
            pixel_m=pixel_size_m(grid),
            warnings=(*choice.notes, *place_notes, *nodata_notes, *notes_of_layout),
            policy=policy,
            sources=admission.sources,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)`` in pixels."""
        height, width = self.grid.shape
        return int(height), int(width)

    @property
    def validity(self) -> tuple[str, ...]:
        """What makes a pixel invalid, of ``nodata``, ``finite`` (NaN, Inf), ``alpha``, ``mask``; empty if nothing can."""
        kinds = {
            "nodata": self.nodata is not None,
            "finite": self.dtype.startswith("float"),
            "alpha": self.alpha is not None,
            "mask": self.masked,
        }
        return tuple(kind for kind, present in kinds.items() if present)

    def reader(self) -> Reader:
        """Open the scene, for one thread: ``with scene.reader() as reader: reader.read(window)``.

        Raises:
            ReadError: if the file is gone, or is not what was described.
        """
        return _FileReader(self) if self.source is None else _ResampledReader(self, self.source)

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Open, read one window as ``Reader.read`` does, close.

        Raises:
            ReadError: if a block of the file cannot be decoded.
        """
        with self.reader() as reader:
            return reader.read(window)

    def resampled(self, shape: tuple[int, int]) -> Scene:
        """The same ground on another grid: averaged along an axis that gets coarser, cubic along one that gets finer.

        The resampling works on pixel axes, not through a CRS: it is the same for rotated and south-up grids and without any
        georeference, and a pixel's value does not depend on the window that is read. GDAL's warper, measured beside it, is six times
        slower and needs a CRS.

        Args:
            shape: ``(height, width)`` of the new grid.
        """
        origin = self.source or self
        if shape == origin.shape:
            return origin
        height, width = origin.shape
        a, b, c, d, e, f = origin.grid.transform[:6]
        wider, higher = width / shape[1], height / shape[0]
        grid = GeoBox(shape, Affine(a * wider, b * higher, c, d * wider, e * higher, f), origin.grid.crs)
        return replace(origin, grid=grid, pixel_m=pixel_size_m(grid), source=origin)

    def stretch(self, percentiles: tuple[float, float] = (2, 98)) -> Stretch:
        """The range between two percentiles of the valid pixels, per band.

        All pixels of a scene up to 1024 x 1024 count, of a larger one as many in 32 x 32 even places; where those hold
        next to no data, every n-th pixel of the whole scene. Without any valid pixel the range is 0 to 1.

        Args:
            percentiles: low and high, 0 to 100.

        Raises:
            ReadError: if a block of the file cannot be decoded.
        """
        origin = self.source or self
        with origin.reader() as reader:
            step = -(-max(origin.shape) // _SAMPLE)
            sample = _sample(reader, _lattice(origin.shape), 1) if step > 1 else np.empty((0, 0))
            if sample.shape[1] < _FEW:
                sample = _sample(reader, Window.of(origin.shape).split(_SAMPLE, _SAMPLE), step)
        if not sample.size:
            return Stretch((0.0,) * len(self.bands), (1.0,) * len(self.bands))
        low, high = np.percentile(sample.astype(np.float64), percentiles, axis=1)
        high = np.where(high > low, high, low + 1)
        return Stretch(tuple(low.tolist()), tuple(high.tolist()))

    def sha256(self) -> str:
        """Hash of the file, for a VRT of its sources too: the identity of the scene.

        Raises:
            ReadError: if a file cannot be read.
        """
        digest = hashlib.sha256()
        for address in (self.address, *self.sources):
            try:
                with Path(address).open("rb") as file:
                    if not self.sources:
                        return hashlib.file_digest(file, "sha256").hexdigest()
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                raise ReadError(f"{self.path}: cannot be read ({error.strerror})") from error
        return digest.hexdigest()

    def facts(self) -> dict[str, Any]:
        """What ``geoseg info`` shows, ready for JSON: grid, bands, validity, storage. Text of the file is made printable.

        Raises:
            ReadError: if the file is gone.
        """
        origin = self.source or self
        with _FileReader(origin) as reader:
            storage = reader.storage()
        crs = self.grid.crs
        return {
            "path": self.path,
            "height": self.shape[0],
            "width": self.shape[1],
            "dtype": self.dtype,
            "chosen_bands": dict(zip(self.band_names, self.bands, strict=True)) if len(set(self.band_names)) == len(self.bands) else None,
            "nodata": None if self.nodata is None else repr(self.nodata),
            "validity": list(self.validity),
            "crs": None if crs is None else crs.proj.name,
            "epsg": None if crs is None else crs.proj.to_epsg(),
            "transform": list(self.grid.transform)[:6],
            "pixel_m": self.pixel_m,
            **storage,
            "warnings": list(self.warnings),
        }


class _FileReader:
    """A file on its own grid."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._whole = Window.of(scene.shape)
        self._bounds = _nodata_bounds(scene.nodata, scene.dtype)
        address, driver = scene.address, "VRT" if scene.sources else "GTiff"
        placed = not scene.grid.transform.is_identity
        with explained(scene.path, "cannot be opened any more", ReadError), environment(scene.policy):
            self._dataset = _open(address, driver, scene.policy) if placed else quietly_open(address, driver, scene.policy)[0]
            self._holes = self._bands_with_holes()
        if self._dataset.shape != scene.shape or self._dataset.count < max(scene.bands):
            self.close()
            raise ReadError(f"{scene.path}: is not the file that was described, it has changed meanwhile; start again")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        with environment(self._scene.policy):
            self._dataset.close()

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        inside = window & self._whole
        if inside == window and not self.empty(window):
            pixels = self._pixels(window)
            return pixels, self._judge(pixels, window)
        pixels = _interleaved(len(self._scene.bands), window.shape, self._scene.dtype)
        valid = np.zeros(window.shape, dtype=bool)
        if inside is not None and not self.empty(inside):
            rows, cols = inside.within(window)
            pixels[:, rows, cols], valid[rows, cols] = self.read(inside)
        return pixels, valid

    def valid(self, window: Window) -> NDArray[np.bool_]:
        if {"nodata", "finite"}.intersection(self._scene.validity):
            return self.read(window)[1]
        valid = np.zeros(window.shape, dtype=bool)
        inside = window & self._whole
        if inside is not None:
            valid[inside.within(window)] = self._marked(inside)
        return valid

    def empty(self, window: Window) -> bool:
        inside = window & self._whole
        if inside is None:
            return True
        if not self._holes:
            return False
        height, width = self._dataset.block_shapes[0]
        rows = range(inside.row // height, (inside.end_row - 1) // height + 1)
        cols = range(inside.col // width, (inside.end_col - 1) // width + 1)
        tag = self._dataset.get_tag_item
        with environment(self._scene.policy):
            return all(tag(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band) is None for band in self._holes for row in rows for col in cols)

    def storage(self) -> dict[str, Any]:
        """How the file keeps its pixels."""
        dataset = self._dataset
        with explained(self._scene.path, "cannot be looked at", ReadError), environment(self._scene.policy):
            tags = dataset.tags(ns="IMAGE_STRUCTURE")
            bands = [
                {"band": number, "interpretation": kind.name, "description": None if text is None else printable(text)}
                for number, (kind, text) in enumerate(zip(dataset.colorinterp, dataset.descriptions, strict=True), 1)
            ]
            return {
                "bands": bands,
                "copyright": printable(dataset.tags().get("TIFFTAG_COPYRIGHT", "")),
                "compression": tags.get("COMPRESSION", "none"),
                "interleave": tags.get("INTERLEAVE", "band").lower(),
                "block": list(dataset.block_shapes[0]),
                "tiled": _is_tiled(dataset),
                "overviews": _overviews(dataset),
                "file_bytes": Path(self._scene.address).stat().st_size,
            }

    def _bands_with_holes(self) -> tuple[int, ...]:
        """Bands whose missing blocks mean missing data; none if that cannot be said without decoding.

        A block that a sparse file leaves out reads as the nodata value, or as 0: no data if that is nodata or alpha.
        """
        scene, dataset = self._scene, self._dataset
        if scene.sources or not _is_tiled(dataset) or (scene.nodata is None and scene.alpha is None):
            return ()
        if dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL":
            return (1,)
        return tuple(sorted(set(scene.bands))) if scene.alpha is None or scene.nodata is not None else (scene.alpha,)

    def _pixels(self, window: Window) -> NDArray[Any]:
        pixels = _interleaved(len(self._scene.bands), window.shape, self._scene.dtype)
        with self._decoding(window):
            self._dataset.read(self._scene.bands, window=_place(window), out=pixels)
        return pixels

    def _judge(self, pixels: NDArray[Any], window: Window) -> NDArray[np.bool_]:
        """Validity of pixels inside the scene."""
        valid = self._marked(window)
        if self._bounds is not None:
            low, high = self._bounds
            data = np.zeros_like(valid)
            for band in pixels:
                data |= (band < low) | (band > high)
            valid &= data
        if "finite" in self._scene.validity:
            for band in pixels:
                valid &= np.isfinite(band)
        return valid

    def _marked(self, window: Window) -> NDArray[np.bool_]:
        """Validity by alpha and mask, of a window inside the scene."""
        valid = np.ones(window.shape, dtype=bool)
        with self._decoding(window):
            if self._scene.alpha is not None:
                valid &= self._dataset.read(self._scene.alpha, window=_place(window)) > 0
            if self._scene.masked:
                valid &= self._dataset.read_masks(self._scene.bands[0], window=_place(window)) > 0
        return valid

    @contextmanager
    def _decoding(self, window: Window) -> Iterator[None]:
        rows, cols = f"{window.row}-{window.end_row - 1}", f"{window.col}-{window.end_col - 1}"
        what = f"rows {rows}, columns {cols} cannot be decoded, the file is damaged or cut off"
        with explained(self._scene.path, what, ReadError), environment(self._scene.policy):
            yield


class _ResampledReader:
    """A file on another grid over the same extent."""

    def __init__(self, scene: Scene, origin: Scene) -> None:
        self._scene = scene
        self._origin = origin
        self._whole = Window.of(scene.shape)
        self._reader = _FileReader(origin)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        from geoseg.resample import resample

        pixels = _interleaved(len(self._scene.bands), window.shape, self._scene.dtype)
        valid = np.zeros(window.shape, dtype=bool)
        for piece in self._pieces(window):
            rows, cols, span = self._taps(piece)
            if not self._reader.empty(span):
                there = piece.within(window)
                pixels[:, *there], valid[there] = resample(*self._reader.read(span), rows, cols)
        return pixels, valid

    def valid(self, window: Window) -> NDArray[np.bool_]:
        from geoseg.resample import covered

        valid = np.zeros(window.shape, dtype=bool)
        for piece in self._pieces(window):
            rows, cols, span = self._taps(piece)
            valid[piece.within(window)] = covered(self._reader.valid(span), rows, cols)
        return valid

    def empty(self, window: Window) -> bool:
        inside = window & self._whole
        return inside is None or self._reader.empty(self._taps(inside)[2])

    def _taps(self, window: Window) -> tuple[Any, Any, Window]:
        """Taps of rows and columns, and the pixels of the file under them."""
        from geoseg.resample import taps

        (height, width), (source_height, source_width) = self._scene.shape, self._origin.shape
        rows = taps(source_height, height, window.row, window.end_row)
        cols = taps(source_width, width, window.col, window.end_col)
        return rows, cols, Window.between(rows.span[0], cols.span[0], rows.span[1], cols.span[1])

    def _pieces(self, window: Window) -> Iterator[Window]:
        """Cut what is inside the scene into rows whose source pixels fit in memory."""
        inside = window & self._whole
        if inside is not None:
            _, _, span = self._taps(Window(inside.row, inside.col, 1, inside.width))
            one = span.area * len(self._scene.bands) * np.dtype(self._scene.dtype).itemsize
            yield from inside.split(max(1, _PIECE // one), inside.width)


def environment(policy: Policy) -> rasterio.Env:
    """GDAL's settings while this room uses it: it looks at nothing but the file, passes over no decoding error, prints nothing.

    Around each use, not for the life of a reader: rasterio's environments belong to a thread and must close in order.
    """
    return rasterio.Env(**(_ENVIRONMENT | _SIDECARS if policy.sidecars else _ENVIRONMENT))


def _open(address: str, driver: str, policy: Policy) -> Any:
    _bound_block_cache()
    with environment(policy):
        return rasterio.open(Path(address), driver=driver, sharing=False)


def quietly_open(address: str, driver: str, policy: Policy) -> tuple[Any, bool]:
    """Open a file that may have no place on Earth, and tell whether it has: rasterio says so in a warning only.

    Python's warning filters belong to the whole process, so this is for few files and one at a time.
    """
    with _quiet, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", NotGeoreferencedWarning)
        dataset = _open(address, driver, policy)
    return dataset, not any(issubclass(warning.category, NotGeoreferencedWarning) for warning in said)


def _bound_block_cache() -> None:
    """Keep GDAL's cache of decoded blocks, one for the whole process, from taking 5 % of the machine; a user's own setting stays.

    In bytes: unlike in GDAL's own configuration, a small number does not mean megabytes here.
    """
    if "GDAL_CACHEMAX" not in os.environ and get_gdal_config("GDAL_CACHEMAX") > _BLOCK_CACHE:
        set_gdal_config("GDAL_CACHEMAX", _BLOCK_CACHE)


@contextmanager
def explained(path: str, what: str, kind: type[SceneError]) -> Iterator[None]:
    """Turn what rasterio and GDAL raise into one line."""
    try:
        yield
    except _GDAL_ERRORS as error:
        told = error.__cause__ if "previous exception" in str(error) and error.__cause__ else error
        cause = printable(str(told)).removeprefix(Path(path).name).lstrip(",: ")
        raise kind(f"{path}: {what} ({cause[:300]})") from error


def misfit(scene: Scene, other: Scene) -> str | None:
    """What the grid of ``other`` has that ``scene``'s has not, to be said after "has"; None if they are one to a hundredth of a pixel."""
    if other.shape != scene.shape:
        return "{} x {} pixels, not {} x {}".format(*other.shape, *scene.shape)
    if other.grid.crs != scene.grid.crs:
        return "the CRS {}, not {}".format(*("none" if grid.crs is None else grid.crs.proj.name for grid in (other.grid, scene.grid)))
    height, width = scene.shape
    corners = np.array([[0, width, 0, width], [0, 0, height, height]], np.float64)
    shift = float(np.abs(_moved(~scene.grid.affine, _moved(other.grid.affine, corners)) - corners).max())
    return None if shift <= _SHIFT_PX else f"another place, {shift:.3g} pixels away"


def _moved(transform: Affine, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (2, n), x before y, after a transform."""
    a, b, c, d, e, f = transform[:6]
    return np.stack([a * points[0] + b * points[1] + c, d * points[0] + e * points[1] + f])


def _place(window: Window) -> rasterio.windows.Window:
    return rasterio.windows.Window(window.col, window.row, window.width, window.height)


def _interleaved(bands: int, shape: tuple[int, int], dtype: str) -> NDArray[Any]:
    """Zeros ``(B, h, w)``, in memory ordered h, w, B."""
    return np.zeros((*shape, bands), dtype=dtype).transpose(2, 0, 1)


def check_size(name: str, dataset: Any, policy: Policy) -> None:
    """Refuse what is too large to begin with; each message names the limit in ``Policy``."""
    height, width = dataset.shape
    rows, cols = dataset.block_shapes[0]
    together = dataset.count if dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL" else 1
    block_bytes = rows * cols * together * max(_itemsize(dtype) for dtype in dataset.dtypes)
    blocks = -(-height // rows) * -(-width // cols) * (dataset.count // together)
    expansion = block_bytes // max(1, Path(dataset.name).stat().st_size) if block_bytes > _LARGE_BLOCK else 0
    for seen, limit, what in (
        (height * width, policy.max_pixels, f"{height} x {width} pixels"),
        (dataset.count, policy.max_bands, f"{dataset.count} bands"),
        (block_bytes, policy.max_block_bytes, f"blocks of {rows} x {cols} pixels, {block_bytes / 2**20:.0f} MB each when decoded"),
        (blocks, policy.max_blocks, f"{blocks} blocks"),
        (expansion, policy.max_expansion, f"blocks that are {expansion:,} times as large as the whole file when decoded"),
    ):
        if seen > limit:
            raise SceneError(f"{name}: has {what}, more than the limit of {limit:,}; if it is sound, raise the limit or convert the file")


def _itemsize(dtype: str) -> int:
    return 4 if dtype == "complex_int16" else np.dtype(dtype).itemsize


def _check_colours(name: str, dataset: Any) -> None:
    """Refuse numbers that are no colours."""
    if ColorInterp.palette in dataset.colorinterp:
        raise BandsError(f"{name}: is a paletted image, its numbers only stand for colours; expand it with 'gdal_translate -expand rgb'")
    if dataset.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") == "CMYK":
        raise BandsError(f"{name}: is a CMYK image for print, not a measurement; convert it to RGB")


def common_dtype(name: str, dataset: Any, chosen: tuple[int, ...], policy: Policy) -> str:
    dtypes = sorted({dataset.dtypes[i - 1] for i in chosen})
    if len(dtypes) > 1:
        raise SceneError(f"{name}: its bands are of different types ({', '.join(dtypes)}); bring them to one with gdal_translate -ot")
    if dtypes[0] not in policy.dtypes:
        raise SceneError(f"{name}: has pixels of type {dtypes[0]}, which is not supported; convert to {', '.join(policy.dtypes)}")
    return str(dtypes[0])


def georeference(name: str, dataset: Any, placed: bool) -> tuple[GeoBox, str | None, tuple[str, ...]]:
    """Grid, the file's own CRS as WKT, and notes."""
    transform = dataset.transform if placed else Affine.identity()
    if transform.is_identity:
        if dataset.gcps[0] or dataset.rpcs:
            what = f"{len(dataset.gcps[0])} control points" if dataset.gcps[0] else "rational polynomials (RPC)"
            raise GeoreferenceError(f"{name}: is placed by {what} alone, its pixels are no map grid yet; run gdalwarp first")
        return GeoBox(dataset.shape, transform, None), None, ("it has no georeference: the result is in pixel coordinates, without a CRS",)
    area = transform.determinant
    if not all(map(math.isfinite, transform[:6])) or area == 0:
        raise GeoreferenceError(f"{name}: its transform {tuple(transform)[:6]} gives pixels no area; mend it with gdal_edit -a_ullr")
    try:
        wkt = None if dataset.crs is None else str(dataset.crs.to_wkt(version="WKT2_2019"))
        crs = None if wkt is None else _horizontal(pyproj.CRS.from_wkt(wkt))
    except (CRSError, ProjError) as error:
        return GeoBox(dataset.shape, transform, None), None, (f"its CRS is not understood ({printable(str(error))[:200]}) and left out",)
    notes = () if wkt else ("it has no CRS: the result has none either, and areas on the ground are unknown",)
    return GeoBox(dataset.shape, transform, crs), wkt, notes


def _horizontal(crs: pyproj.CRS) -> pyproj.CRS:
    """The CRS of a map: without heights."""
    flat = crs.sub_crs_list[0] if crs.is_compound else crs
    return flat.to_2d() if len(flat.axis_info) > 2 else flat


def pixel_size_m(grid: GeoBox) -> float | None:
    """Side of a square as large on the ground as the central pixel, metres."""
    if grid.crs is None:
        return None
    crs = grid.crs.proj
    geod, degrees = crs.get_geod(), crs.geodetic_crs
    if geod is None or degrees is None:
        return None
    height, width = grid.shape
    a, b, c, d, e, f = grid.transform[:6]
    cols = width / 2 + np.array([-0.5, 0, 0, 0, 0.5, 0, 0.5, 0])
    rows = height / 2 + np.array([0, -0.5, 0, 0, 0, 0.5, 0, 0.5])
    with np.errstate(over="ignore", invalid="ignore"):
        x, y = a * cols + b * rows + c, d * cols + e * rows + f
    try:
        lon, lat = pyproj.Transformer.from_crs(crs, degrees, always_xy=True).transform(x, y)
    except ProjError:
        return None
    if not np.isfinite([lon, lat]).all():
        return None
    azimuth, _, length = geod.inv(lon[:4], lat[:4], lon[4:], lat[4:])
    area = length[0] * length[1] * abs(math.sin(math.radians(azimuth[3] - azimuth[2])))
    return math.sqrt(area) if area > 0 else None


def nodata_of(address: str, dataset: Any, chosen: tuple[int, ...], dtype: str) -> tuple[float | None, tuple[str, ...]]:
    """The value that means no data, and a note where the file names one that cannot occur."""
    values = {repr(dataset.nodatavals[i - 1]): dataset.nodatavals[i - 1] for i in chosen}
    if len(values) > 1:
        return None, (f"its bands have different nodata values ({', '.join(values)}): all are ignored",)
    value = next(iter(values.values()))
    if value is not None and (dtype.startswith("float") or float(value).is_integer()):
        return float(value), ()
    stated = repr(value) if value is not None else _nodata_tag(address)
    return None, (f"its nodata value {stated} does not occur in {dtype} and is ignored",) if stated else ()


def _nodata_tag(address: str) -> str | None:
    """The text of GDAL's nodata tag in the first image of a TIFF: rasterio keeps silent about a value outside the type."""
    with Path(address).open("rb") as file:
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        big = len(head) == 16 and head[2:4] in (b"+\0", b"\0+")
        try:
            file.seek(struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)[0])
            entries = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))[0]
            for _ in range(min(entries, 4096)):
                entry = file.read(20 if big else 12)
                tag, _, length = struct.unpack_from(order + ("HHQ" if big else "HHI"), entry)
                if tag == 42113 and length <= 64:
                    where = 12 if big else 8
                    if length <= len(entry) - where:
                        text = entry[where : where + length]
                    else:
                        file.seek(struct.unpack_from(order + ("Q" if big else "I"), entry, where)[0])
                        text = file.read(length)
                    return printable(text.split(b"\0")[0].decode("ascii", "replace"))
        except (struct.error, OSError, OverflowError):
            return None
    return None


def _nodata_bounds(nodata: float | None, dtype: str) -> tuple[Any, Any] | None:
    """Lowest and highest value that count as nodata; None where there is no such value, or it is not finite.

    In a float file the value is text in a tag, often rounded: a millionth of it is let pass, and a hundredth of values like
    -3.4e38 that nothing measured can have.
    """
    if nodata is None or not math.isfinite(nodata):
        return None
    kind = np.dtype(dtype)
    if kind.kind != "f":
        return kind.type(int(nodata)), kind.type(int(nodata))
    slack = abs(nodata) * (1e-2 if abs(nodata) > 1e30 else 1e-6)
    limits = np.finfo(kind)
    return kind.type(max(nodata - slack, float(limits.min))), kind.type(min(nodata + slack, float(limits.max)))


def _overviews(dataset: Any) -> list[int]:
    """Factors of the overviews. GDAL walks all directories of the file for this; its complaints about them are none about the scene."""
    factors = list(dataset.overviews(1))
    with suppress(CPLE_BaseError):
        _ = dataset.colorinterp  # where rasterio would raise what is still pending
    return factors


def _is_tiled(dataset: Any) -> bool:
    """Whether blocks are narrower than the scene, or padded: the blocks GDAL reports are then those of the file."""
    return bool(dataset.block_shapes[0][1] != dataset.width)


def layout_notes(address: str, dataset: Any, policy: Policy) -> tuple[str, ...]:
    """What about the file will be slow, or is left unread."""
    notes = []
    if not _is_tiled(dataset) and dataset.height * dataset.width > 16e6:
        notes.append("it is not stored in tiles, which reads slowly; 'gdal_translate -of COG' makes a tiled copy")
    hidden = () if policy.sidecars else hidden_sidecars(address)
    if hidden:
        notes.append(f"{', '.join(map(printable, hidden))} beside it is not read; pass --sidecars if it belongs to the scene")
    return tuple(notes)


def _lattice(shape: tuple[int, int]) -> Iterator[Window]:
    """Windows of at most 32 x 32 pixels in the middle of the cells of a 32 x 32 lattice."""
    for top, bottom in _cells(shape[0]):
        for left, right in _cells(shape[1]):
            yield Window.between(top, left, bottom, right)


def _cells(length: int) -> Iterator[tuple[int, int]]:
    for i in range(_CELLS):
        start, stop = i * length // _CELLS, (i + 1) * length // _CELLS
        size = min(_SAMPLE // _CELLS, stop - start)
        if size:
            start += (stop - start - size) // 2
            yield start, start + size


def _sample(reader: Reader, windows: Iterator[Window], step: int) -> NDArray[Any]:
    """Valid pixels ``(B, n)`` of the rows and columns that are multiples of ``step`` (or, for step 1, of all)."""
    found = []
    for window in windows:
        if not reader.empty(window):
            pixels, valid = reader.read(window)
            there = (slice(-window.row % step, None, step), slice(-window.col % step, None, step))
            found.append(pixels[:, *there][:, valid[there]])
    return np.concatenate(found, axis=1) if found else np.empty((0, 0))
