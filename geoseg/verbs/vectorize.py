"""From a class raster to polygons."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoseg import __version__, vectors
from geoseg.classes import ClassRaster, rows_of
from geoseg.errors import OptionsError, OutputError, SceneError
from geoseg.features import Features
from geoseg.legend import ISPRS, Legend
from geoseg.polygons import Faces, Shaping, on_map, polygonize
from geoseg.polygons.arcs import Block
from geoseg.polygons.measure import zonal_means
from geoseg.scene import Policy, Scene
from geoseg.window import Window

_UNKNOWN = 255  # confidence
_TOP = 254  # confidence 1
_SHIFT_PX = 0.01  # grids that lie closer are one


def vectorize(
    raster: str | Path,
    out: str | Path,
    *,
    band: int | None = None,
    nodata: float | None = None,
    legend: str | Path | Legend | None = None,
    confidence: str | Path | None = None,
    zonal: str | Path | None = None,
    shaping: Shaping | None = None,
    single_layer: bool = False,
    kind: str | None = None,
    force: bool = False,
    policy: Policy | None = None,
    watch: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Draw the outlines of a class raster, which may be another tool's, and write them with what is known of each polygon.

    Args:
        raster: GeoTIFF of whole numbers, at most 255 of them different.
        out: file of the result.
        band: of the raster, from 1; None if there is only one.
        nodata: number that is outside, instead of the file's.
        legend: a legend, its name (``isprs``) or YAML file; None for what the file says, see `ClassRaster.describe`.
        confidence: raster on the same grid, bytes as geoseg writes them (254 = 1.0, 255 = unknown) or floats from 0 to 1.
        zonal: raster on the same grid; the mean of each of its bands becomes an attribute ``zonal_NAME``, or ``zonal_1`` and
            so on for bands without names.
        shaping: what is done to the outlines; None for nothing.
        single_layer: put all classes of a GeoPackage into one layer.
        kind: one of `geoseg.vectors.FORMATS`; None for what the name of ``out`` says.
        force: replace the file if it exists.
        policy: which files may be opened.
        watch: called with stage, steps done and steps in all.

    Returns:
        What was done, JSON-able: ``out``, ``format``, ``classes`` (by name: ``id``, ``polygons``, ``area_m2``), ``polygons``,
        ``warnings`` and ``seconds``.

    Raises:
        GeosegError: one of its kinds, when anything is not as it must be; nothing half-written is left.
    """
    began, target, shaping = time.monotonic(), Path(out), shaping or Shaping()
    kind = vectors.format_of(target, kind)
    _check_clear(target, force)
    source = ClassRaster.describe(raster, band=band, nodata=nodata, legend=None if legend is None else _legend(legend), policy=policy)
    certainty = None if confidence is None else _beside(source.scene, confidence, policy, first_band=True)
    measured = None if zonal is None else _beside(source.scene, zonal, policy)
    scene = source.scene

    def told() -> Iterator[Window]:
        for window in rows_of(scene):
            watch("trace", window.row, scene.shape[0])
            yield window

    def read(window: Window) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        _, classes, values = next(_blocks(source, certainty, [window]))
        return classes, values

    faces = polygonize(_blocks(source, certainty, told()), scene.shape, shaping, scene.grid, source.legend, read)
    columns = {} if measured is None else _zonal(faces, measured, watch)
    watch("write", 0, 1)
    features = Features.of(faces, scene.grid, source.legend, values=source.values, columns=columns)
    vectors.write(target, features, _facts(source, shaping), kind=kind, single_layer=single_layer)
    return {
        "out": str(target),
        "format": kind,
        "classes": classes_of(features),
        "polygons": len(faces),
        "warnings": list(source.warnings),
        "seconds": round(time.monotonic() - began, 3),
    }


def classes_of(features: Features) -> dict[str, dict[str, Any]]:
    """Count and area of the polygons of each class, by its name; the area None where it is not known."""
    areas = np.bincount(features.faces.class_id, features.areas_m2, minlength=256)
    counts = features.counts()
    return {
        c.name: {
            "id": features.value(c.id),
            "polygons": counts[c.id],
            "area_m2": round(float(areas[c.id]), 3) if math.isfinite(areas[c.id]) else None,
        }
        for c in features.legend.classes
    }


def _check_clear(target: Path, force: bool) -> None:
    if not target.parent.is_dir():
        raise OutputError(f"{target}: the folder {target.parent} is missing; make it, or choose another --out")
    if target.is_dir():
        raise OutputError(f"{target}: is a folder, expected the name of a file; choose another --out")
    if target.exists() and not force:
        raise OutputError(f"{target}: exists already; use --force to replace it or choose another --out")


def _legend(chosen: str | Path | Legend) -> Legend:
    """A legend by its name or file."""
    if isinstance(chosen, Legend):
        return chosen
    if str(chosen) == ISPRS.name:
        return ISPRS
    if not Path(chosen).is_file():
        raise OptionsError(f"{chosen}: no such legend; give {ISPRS.name!r} or a YAML file with the keys name and classes")
    return Legend.from_yaml(chosen)


def _beside(scene: Scene, path: str | Path, policy: Policy | None, *, first_band: bool = False) -> Scene:
    """Describe a raster that has to lie on the same grid.

    Raises:
        SceneError: if it does not.
    """
    other = Scene.describe(path, indexes=(1,) if first_band else None, policy=policy)
    if other.shape != scene.shape:
        seen = "{} x {} pixels, not {} x {}".format(*other.shape, *scene.shape)
    elif other.grid.crs != scene.grid.crs:
        seen = "the CRS {}, not {}".format(*("none" if grid.crs is None else grid.crs.proj.name for grid in (other.grid, scene.grid)))
    else:
        height, width = scene.shape
        corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
        found = on_map(~scene.grid.affine, on_map(other.grid.affine, corners))
        if np.abs(found - corners).max() <= _SHIFT_PX:
            return other
        seen = f"another place, {np.abs(found - corners).max():.3g} pixels away"
    raise SceneError(f"{other.path}: has {seen}, as {scene.path} has; bring it to the same grid with gdalwarp -t_srs, -te and -ts")


def _blocks(source: ClassRaster, certainty: Scene | None, windows: Iterable[Window]) -> Iterator[Block]:
    """Windows with class ids, and confidence if there is one."""
    with ExitStack() as stack:
        reader = None if certainty is None else stack.enter_context(certainty.reader())
        for window, classes in source.read(windows):
            yield window, classes, None if reader is None or certainty is None else _as_bytes(*reader.read(window), certainty)


def _as_bytes(pixels: NDArray[Any], valid: NDArray[np.bool_], scene: Scene) -> NDArray[np.uint8]:
    """Confidence (1, h, w) as geoseg writes it: (h, w) uint8, 254 = 1.0, 255 = unknown.

    Raises:
        SceneError: if it is no confidence.
    """
    values = pixels[0]
    if values.dtype == np.uint8:
        return np.where(valid, values, np.uint8(_UNKNOWN))
    known = values[valid]
    if values.dtype.kind != "f" or (known.size and not (known.min() >= 0 and known.max() <= 1)):
        seen = f"{values.dtype} from {known.min():g} to {known.max():g}" if known.size else str(values.dtype)
        raise SceneError(f"{scene.path}: holds {seen}, expected confidence: floats from 0 to 1, or bytes with 254 = 1.0 and 255 = unknown")
    confidence = np.full(values.shape, _UNKNOWN, np.uint8)
    confidence[valid] = np.rint(_TOP * known)
    return confidence


def _zonal(faces: Faces, scene: Scene, watch: Callable[[str, int, int], None]) -> Mapping[str, NDArray[np.float64]]:
    """Mean of each band of a raster over each polygon, by the name of its column."""

    def bands() -> Iterator[tuple[Any, NDArray[Any], NDArray[np.bool_]]]:
        with scene.reader() as reader:
            for window in rows_of(scene):
                watch("zonal", window.row, scene.shape[0])
                yield window, *reader.read(window)

    means = zonal_means(faces, bands(), len(scene.bands))
    return dict(zip(_columns(scene), means.T, strict=True))


def _columns(scene: Scene) -> list[str]:
    """A name for each band, of letters that every format takes; its number where the bands have no names."""
    named = [re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:50] for name in scene.band_names]
    numbers = [str(number) for number in range(1, len(named) + 1)]
    unnamed = len(set(named)) < len(named) or not all(named) or all(re.fullmatch(r"band_\d+", name) for name in named)
    return [f"zonal_{name}" for name in (numbers if unnamed else named)]


def _facts(source: ClassRaster, shaping: Shaping) -> dict[str, str]:
    """What the file says of its origin; what geoseg said in the raster goes on."""
    plain = asdict(Shaping())
    chosen = {key: value for key, value in asdict(shaping).items() if value != plain[key]}
    return {
        **source.own,
        "GEOSEG_VERSION": __version__,
        "CLASSES": Path(source.scene.path).name,
        "CLASSES_SHA256": source.scene.sha256(),
        "SHAPING": ", ".join(f"{key}={value}" for key, value in chosen.items()) or "none",
    }
