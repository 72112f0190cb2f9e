"""Class blocks into a Cloud-Optimized GeoTIFF."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from geoseg._version import __version__
from geoseg.errors import CoverageError, OutputError, ReadError
from geoseg.legend import NODATA, Legend
from geoseg.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox
    from rasterio.io import DatasetWriter

BLOCK = 512
"""Height and width of the file's blocks in pixels; pieces whose borders lie on its multiples are written once."""

SCALAR_TOP = 254
"""The stored value that means 1.0 in a scalar raster; 0 means 0.0."""

SCALAR_NODATA = 255
"""The stored value of pixels without data in a scalar raster."""

_FAILURES = (OSError, RasterioError, CPLE_BaseError)
_CACHE_BYTES = 64 * 2**20
_SPARE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class _Style:
    """How the bands of a file read and look, beyond their pixels."""

    names: tuple[str, ...]
    nodata: int
    overviews: Resampling
    colours: Mapping[int, tuple[int, int, int, int]] | None = None
    scale: float | None = None


def write_cog(
    pieces: Iterable[tuple[Window, NDArray[np.uint8]]], path: str | Path, grid: GeoBox, legend: Legend, tags: Mapping[str, str]
) -> NDArray[np.int64]:
    """Write class ids as a Cloud-Optimized GeoTIFF with names and colours, all or nothing.

    One uint8 band ``class`` (0 = no data), DEFLATE blocks of 512 x 512 pixels, palette, statistics, MODE overviews (no overview holds
    a class that its pixels lack), and beside it ``NAME.tif.aux.xml`` with category names and a thematic attribute table. The pieces
    go to a draft beside the target; the finished file is read back and compared with them before it takes its name. The same pieces
    give the same bytes, in any order and on any number of cores.

    Args:
        pieces: windows and their classes ``(h, w)`` uint8, in any order, covering each pixel of the grid once. Those cut at
            multiples of ``BLOCK`` are written fastest. Memory holds one piece and 64 MiB of blocks.
        path: of the ``.tif``; replaced where it exists.
        grid: shape, transform (also rotated or south-up) and CRS (may be None), used as they are.
        legend: class ids, names and colours.
        tags: metadata, e.g. ``GEOSEG_MODEL``.

    Returns:
        Pixels per class id, ``(256,)`` int64.

    Raises:
        OutputError: if the file cannot be written, or reads back otherwise than it was written.
        CoverageError: if the pieces do not cover the grid, or hold an id that is not in the legend.
    """
    colours = {NODATA: (0, 0, 0, 0)} | {c.id: (*c.rgb, 255) for c in legend.classes}
    style = _Style(names=("class",), nodata=NODATA, overviews=Resampling.mode, colours=colours)
    with _workplace(Path(path)) as work:
        cog, counts = _build(pieces, work, Path(path), grid, style, tags)
        strangers = set(np.flatnonzero(counts[0]).tolist()) - {NODATA, *legend.ids}
        if strangers:
            raise CoverageError(f"{path}: class ids {sorted(strangers)} are not in legend {legend.name!r} {legend.ids}; please report this")
        _publish(cog, Path(path), _attribute_table(legend, counts[0]))
    result: NDArray[np.int64] = counts[0]
    return result


def write_scalar_cog(
    pieces: Iterable[tuple[Window, NDArray[np.uint8]]], path: str | Path, grid: GeoBox, names: Sequence[str], tags: Mapping[str, str]
) -> None:
    """Write numbers between 0 and 1, such as confidence or class scores, as a Cloud-Optimized GeoTIFF, all or nothing.

    uint8 bands with scale 1/254 (254 = 1.0, 255 = no data), DEFLATE blocks of 512 x 512 pixels, statistics, AVERAGE overviews. Written
    and checked as ``write_cog`` does.

    Args:
        pieces: windows and their values, ``(h, w)`` for one band or ``(K, h, w)`` uint8, in any order, covering each pixel once.
        path: of the ``.tif``; replaced where it exists.
        grid: shape, transform and CRS, used as they are.
        names: description of each of the K bands, e.g. ``("confidence",)`` or the class names.
        tags: metadata.

    Raises:
        OutputError: if the file cannot be written, or reads back otherwise than it was written.
        CoverageError: if the pieces do not cover the grid.
    """
    style = _Style(names=tuple(names), nodata=SCALAR_NODATA, overviews=Resampling.average, scale=1 / SCALAR_TOP)
    with _workplace(Path(path)) as work:
        cog, _ = _build(pieces, work, Path(path), grid, style, tags)
        _publish(cog, Path(path), None)


def preview(path: str | Path, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Read a class raster at a smaller size, from its overviews; each pixel the most frequent of those it stands for.

    Args:
        path: of a ``.tif`` that ``write_cog`` wrote.
        shape: height and width of the answer.

    Returns:
        ``(h, w)`` uint8 class ids.

    Raises:
        ReadError: if the file cannot be read.
    """
    try:
        with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES, GDAL_PAM_ENABLED=False), _quiet(), rasterio.open(path, driver="GTiff") as raster:
            classes: NDArray[np.uint8] = raster.read(1, out_shape=shape, resampling=Resampling.mode)
    except _FAILURES as error:
        raise ReadError(f"{path}: the class raster cannot be read ({error}); predict the scene again with --force") from error
    return classes


@contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """A new folder beside the target, on the same disk; gone at the end, whatever happens."""
    with _refusals(path):
        if path.is_dir():
            raise OutputError(f"{path}: is a folder, expected the name of a file; choose another output")
        folder = tempfile.TemporaryDirectory(prefix=f".geoseg-{os.getpid()}-", dir=path.parent)
    with folder as work:
        yield Path(work)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn what the system and GDAL say about a file that cannot be written into one line."""
    try:
        yield
    except _FAILURES as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = " ".join(cause.split()) or type(error).__name__
        room = _room(path)
        seen = "the folder is missing" if room is None else f"{room / 1e9:.4g} GB are free there"
        raise OutputError(f"{path}: cannot be written ({reason}; {seen}); choose a folder with room for it (--out)") from error


def _room(path: Path) -> int | None:
    """Free bytes on the disk of a file to be; None where its folder is missing."""
    return shutil.disk_usage(path.parent).free if path.parent.is_dir() else None


def _require_room(path: Path, need: int) -> None:
    """Refuse before GDAL meets the end of the disk.

    Raises:
        OutputError: if ``need`` bytes and some to spare are not free.
    """
    room = _room(path)
    if room is not None and room < need + _SPARE_BYTES:
        raise OutputError(
            f"{path}: the disk is full ({room / 1e6:.1f} MB free, about {(need + _SPARE_BYTES) / 1e6:.1f} MB needed now); "
            "free some space or choose another place with --out"
        )


def _build(
    pieces: Iterable[tuple[Window, NDArray[np.uint8]]], work: Path, path: Path, grid: GeoBox, style: _Style, tags: Mapping[str, str]
) -> tuple[Path, NDArray[np.int64]]:
    """Draft, COG and proof; the COG still lies in ``work``. Returns it with its pixels per band and value, ``(K, 256)``."""
    draft, cog = work / "draft.tif", work / "cog.tif"
    counts, proofs = _write_draft(pieces, draft, path, grid, style, tags)
    with _refusals(path):
        _require_room(path, 2 * draft.stat().st_size)
        _convert(draft, cog, style)
        _verify(cog, proofs, path)
    return cog, counts


def _write_draft(
    pieces: Iterable[tuple[Window, NDArray[np.uint8]]], draft: Path, path: Path, grid: GeoBox, style: _Style, tags: Mapping[str, str]
) -> tuple[NDArray[np.int64], list[tuple[Window, int]]]:
    """Write the pieces to a tiled GeoTIFF; count their values and remember a checksum of each."""
    counts = np.zeros((len(style.names), 256), np.int64)
    proofs: list[tuple[Window, int]] = []
    scene = Window.of((int(grid.shape[0]), int(grid.shape[1])))
    with _refusals(path):
        raster = _create(draft, grid, style, tags)
    with _closing(raster, path):
        for window, values in pieces:
            bands = values[np.newaxis] if values.ndim == 2 else values
            if not scene.contains(window) or bands.shape != (len(style.names), *window.shape) or bands.dtype != np.uint8:
                raise CoverageError(f"{path}: a piece {bands.dtype}{bands.shape} at {window} does not fit {scene}; please report this")
            _require_room(path, bands.nbytes)
            with _refusals(path):
                raster.write(bands, window=((window.row, window.end_row), (window.col, window.end_col)))
            proofs.append((window, _checksum(bands)))
            counts += [_histogram(band) for band in bands]
        if int(counts[0].sum()) != scene.area or len(dict(proofs)) != len(proofs):
            raise CoverageError(
                f"{path}: {len(proofs)} pieces cover {int(counts[0].sum())} of {scene.area} pixels, some twice or never; please report this"
            )
        with _refusals(path):
            for band, count in enumerate(counts, start=1):
                raster.update_tags(band, **_statistics(count, style.nodata))
    return counts, proofs


@contextmanager
def _closing(raster: DatasetWriter, path: Path) -> Iterator[None]:
    """Close a raster at the end; what closing still has to write may fail too."""
    try:
        yield
    except BaseException:
        with suppress(*_FAILURES):
            raster.close()
        raise
    with _refusals(path):
        raster.close()


def _create(draft: Path, grid: GeoBox, style: _Style, tags: Mapping[str, str]) -> DatasetWriter:
    """Open the draft for writing, one thread: with more, GDAL would not report a full disk."""
    height, width = grid.shape
    placed = not grid.transform.is_identity
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES), _quiet():
        raster = rasterio.open(
            draft,
            "w",
            driver="GTiff",
            height=int(height),
            width=int(width),
            count=len(style.names),
            dtype="uint8",
            nodata=style.nodata,
            crs=None if grid.crs is None else str(grid.crs),
            transform=grid.transform if placed else None,
            tiled=True,
            blockxsize=BLOCK,
            blockysize=BLOCK,
            photometric="palette" if style.colours else "minisblack",
            alpha="no",
            compress="zstd",
            zstd_level=1,
            num_threads=1,
            bigtiff="if_safer",
        )
    raster.update_tags(TIFFTAG_SOFTWARE=f"geoseg {__version__}", **tags)
    raster.descriptions = style.names
    if style.colours:
        raster.write_colormap(1, style.colours)
    else:
        raster.colorinterp = [ColorInterp.gray, *[ColorInterp.undefined] * (len(style.names) - 1)]
    if style.scale is not None:
        raster.scales = (style.scale,) * len(style.names)
    return raster


@contextmanager
def _quiet() -> Iterator[None]:
    """A scene without a transform is no reason to warn while its map is written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _checksum(bands: NDArray[np.uint8]) -> int:
    return zlib.crc32(np.ascontiguousarray(bands).data)


def _histogram(band: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels per value, ``(256,)``; row by row, because bincount copies what it counts to eight times its size."""
    count = np.zeros(256, np.int64)
    rows = max(1, 2**16 // band.shape[1])
    for top in range(0, band.shape[0], rows):
        count += np.bincount(band[top : top + rows].ravel(), minlength=256)
    return count


def _statistics(count: NDArray[np.int64], nodata: int) -> dict[str, str]:
    """GDAL's statistics of a band from its pixels per value, exact; empty where no pixel is valid."""
    valid = count.copy()
    valid[nodata] = 0
    values, total = np.flatnonzero(valid), int(valid.sum())
    if not total:
        return {}
    mean = float(values @ valid[values]) / total
    deviation = float(np.sqrt((values - mean) ** 2 @ valid[values] / total))
    return {
        "STATISTICS_MINIMUM": str(values[0]),
        "STATISTICS_MAXIMUM": str(values[-1]),
        "STATISTICS_MEAN": f"{mean:.14g}",
        "STATISTICS_STDDEV": f"{deviation:.14g}",
        "STATISTICS_VALID_PERCENT": f"{100 * total / int(count.sum()):.4g}",
    }


def _convert(draft: Path, cog: Path, style: _Style) -> None:
    """Let GDAL lay out the COG; its statistics and tags come from the draft."""
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES, GDAL_PAM_ENABLED=False, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), _quiet():
        rasterio.shutil.copy(
            draft,
            cog,
            driver="COG",
            compress="DEFLATE",
            blocksize=BLOCK,
            overview_resampling=style.overviews.name.upper(),
            statistics="AUTO",
            num_threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "ALL_CPUS",
            bigtiff="IF_SAFER",
        )


def _verify(cog: Path, proofs: Iterable[tuple[Window, int]], path: Path) -> None:
    """Read every piece back.

    Raises:
        OutputError: if one is not what was written.
    """
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES, GDAL_PAM_ENABLED=False), _quiet(), rasterio.open(cog, driver="GTiff") as raster:
        for window, proof in proofs:
            bands = raster.read(window=((window.row, window.end_row), (window.col, window.end_col)))
            if _checksum(bands) != proof:
                raise OutputError(f"{path}: {window} reads back otherwise than it was written; check the disk and run again")


def _attribute_table(legend: Legend, counts: NDArray[np.int64]) -> bytes:
    """GDAL's side file of a class raster: category names and a thematic attribute table, which QGIS and ArcGIS show as its legend."""
    root = ElementTree.Element("PAMDataset")
    band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
    ElementTree.SubElement(band, "Description").text = "class"
    names = {NODATA: "no data"} | {c.id: c.name for c in legend.classes}
    categories = ElementTree.SubElement(band, "CategoryNames")
    for value in range(max(names) + 1):
        ElementTree.SubElement(categories, "Category").text = names.get(value, "")
    table = ElementTree.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    for index, facts in enumerate(_COLUMNS):
        column = ElementTree.SubElement(table, "FieldDefn", index=str(index))
        for key, fact in zip(("Name", "Type", "Usage"), facts, strict=True):
            ElementTree.SubElement(column, key).text = str(fact)
    for index, item in enumerate(legend.classes):
        row = ElementTree.SubElement(table, "Row", index=str(index))
        for cell in (item.id, int(counts[item.id]), item.name, *item.rgb, 255, item.title):
            ElementTree.SubElement(row, "F").text = str(cell)
    ElementTree.indent(root)
    return f"{ElementTree.tostring(root, encoding='unicode')}\n".encode()


_COLUMNS = (
    *(("Value", 0, 5), ("Count", 1, 1), ("Class", 2, 2)),
    *(("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8), ("Alpha", 0, 9), ("Title", 2, 0)),
)
"""Name, GDALRATFieldType (0 integer, 1 real, 2 string) and GDALRATFieldUsage of the attribute table's columns."""


def _publish(cog: Path, path: Path, side: bytes | None) -> None:
    """Give the finished file its name, after its side file; a side file of an older raster does not outlive it."""
    final = path.with_name(path.name + ".aux.xml")
    with _refusals(path):
        if side is None:
            final.unlink(missing_ok=True)
        else:
            draft = cog.with_name("side.xml")
            draft.write_bytes(side)
            _sync(draft)
            draft.replace(final)
        _sync(cog)
        cog.replace(path)
    with suppress(OSError):  # some network file systems cannot sync a folder; the file itself is safe
        _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
