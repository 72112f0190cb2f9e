"""Polygons of a vector file, read with what it says of each."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyogrio.errors
import pyproj
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import CRSError, ProjError

from geoseg.errors import GeoreferenceError, OptionsError
from geoseg.policy import printable

SUFFIXES = (".gpkg", ".geojson", ".json", ".geojsonl", ".fgb", ".parquet", ".csv")
"""How the names of vector files end."""

_CLASS = ("class_name", "class", "class_id")
_SURE = ("confidence",)
_IMAGE = ("imageid", "image_id")
_WKT = ("polygonwkt_pix", "polygonwkt_geo", "wkt")
_LONGEST = 2**27  # of a field of a CSV file


@dataclass(frozen=True, eq=False)
class Outlines:
    """Polygons, each one instance of a class.

    Attributes:
        path: of the file, printable.
        shapes: (N,) valid, not empty polygons or multipolygons without heights.
        classes: (N,) text, name or number of the class of each; empty where the file says none.
        confidence: (N,) float64, NaN where the file says none.
        images: (N,) text, the image each belongs to; empty where the file says none.
        names: every image that the file names, also those without polygons.
        crs: of the coordinates; None for pixels, or where the file does not say it.
        in_pixels: whether coordinates are columns and rows of an image.
    """

    path: str
    shapes: NDArray[np.object_]
    classes: NDArray[np.object_]
    confidence: NDArray[np.float64]
    images: NDArray[np.object_]
    names: tuple[str, ...]
    crs: pyproj.CRS | None
    in_pixels: bool

    def __len__(self) -> int:
        """Number of polygons."""
        return len(self.shapes)

    @classmethod
    def read(cls, path: str | Path) -> Outlines:
        """Read all polygons of a GeoPackage (every layer), GeoJSON, FlatGeobuf, GeoParquet, or a CSV file as SpaceNet has them.

        The class of a polygon is its attribute ``class_name``, ``class`` or ``class_id``, how sure it is ``confidence``, its image
        ``ImageId``; a CSV has the column ``PolygonWKT_Pix`` (pixels), ``PolygonWKT_Geo`` or ``WKT``. Points and lines are left out.

        Raises:
            OptionsError: if the file cannot be read, or is none of these.
        """
        name, file = printable(str(path)), Path(path)
        if not file.is_file():
            raise OptionsError(f"{name}: no such file; expected polygons in one of {', '.join(SUFFIXES)}")
        if file.suffix.lower() == ".csv":
            columns, shapes, in_pixels = _from_csv(file, name)
            crs = None
        else:
            columns, shapes, crs = _from_ogr(file, name)
            in_pixels = False
        images = _texts(columns, _IMAGE, len(shapes))
        flat = shapely.force_2d(shapes)
        sound, broken = flat.copy(), ~shapely.is_valid(flat)
        sound[broken] = shapely.make_valid(flat[broken])
        kept = np.isin(shapely.get_type_id(sound), (3, 6)) & ~shapely.is_empty(sound)
        kept |= (shapely.get_type_id(sound) == 7) & (shapely.area(sound) > 0)
        texts = _texts(columns, _SURE, len(shapes))
        return cls(
            name,
            sound[kept],
            _texts(columns, _CLASS, len(shapes))[kept],
            np.array([_number(text) for text in texts[kept]], np.float64),
            images[kept],
            tuple(dict.fromkeys(images.tolist())),
            crs,
            in_pixels,
        )

    def of(self, chosen: NDArray[np.bool_]) -> Outlines:
        """Only some of the polygons."""
        return replace(
            self,
            shapes=self.shapes[chosen],
            classes=self.classes[chosen],
            confidence=self.confidence[chosen],
            images=self.images[chosen],
        )

    def moved(self, crs: pyproj.CRS | None) -> NDArray[np.object_]:
        """(N,) the polygons in another CRS; as they are where either side has none.

        Raises:
            GeoreferenceError: if there is no way from one to the other.
        """
        if crs is None or self.crs is None or crs == self.crs:
            return self.shapes
        try:
            change = pyproj.Transformer.from_crs(self.crs, crs, always_xy=True)
        except ProjError as error:
            raise GeoreferenceError(f"{self.path}: its CRS {self.crs.name} cannot be brought to {crs.name}; use ogr2ogr -t_srs") from error
        moved: NDArray[np.object_] = shapely.transform(self.shapes, lambda xy: np.column_stack(change.transform(xy[:, 0], xy[:, 1])))
        if not np.isfinite(shapely.bounds(moved)).all():
            raise GeoreferenceError(f"{self.path}: some of its polygons have no place in {crs.name}; use ogr2ogr -t_srs, or mend them")
        return moved


def _from_csv(file: Path, name: str) -> tuple[dict[str, Sequence[Any]], NDArray[np.object_], bool]:
    """Columns by their names in small letters, shapes, and whether they are in pixels."""
    csv.field_size_limit(_LONGEST)
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            rows = list(csv.reader(text))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OptionsError(f"{name}: not a readable CSV file ({printable(str(error))})") from error
    head = [title.strip().lower() for title in rows[0]] if rows else []
    wkt = next((title for title in _WKT if title in head), None)
    if wkt is None:
        raise OptionsError(f"{name}: has the columns {', '.join(head) or 'none'}; expected PolygonWKT_Pix, PolygonWKT_Geo or WKT")
    ragged = next((number for number, row in enumerate(rows, 1) if len(row) != len(head)), None)
    if ragged is not None:
        raise OptionsError(f"{name}: line {ragged} has {len(rows[ragged - 1])} fields, the first has {len(head)}; mend the file")
    columns: dict[str, Sequence[Any]] = {title: [row[place] for row in rows[1:]] for place, title in enumerate(head)}
    try:
        shapes = shapely.from_wkt(np.array([text or "POLYGON EMPTY" for text in columns[wkt]], object))
    except shapely.errors.ShapelyError as error:
        raise OptionsError(f"{name}: column {wkt} holds something else than WKT ({printable(str(error))})") from error
    return columns, shapes, wkt == "polygonwkt_pix"


def _from_ogr(file: Path, name: str) -> tuple[dict[str, Sequence[Any]], NDArray[np.object_], pyproj.CRS | None]:
    """Columns by their names in small letters, shapes and CRS of all layers."""
    if file.suffix.lower() not in SUFFIXES:
        raise OptionsError(f"{name}: is no vector file that is known; expected one of {', '.join(SUFFIXES)}")
    parts: list[NDArray[np.object_]] = []
    columns: list[dict[str, Sequence[Any]]] = []
    crs: pyproj.CRS | None = None
    try:
        with file.open("rb") as opened:
            _check_head(opened.read(64), name, file.suffix.lower())
        layers = [str(layer) for layer, kind in pyogrio.list_layers(file.resolve()) if kind is not None]
        for layer in layers:
            meta, _, geometries, fields = pyogrio.raw.read(file.resolve(), layer=layer)
            found = {str(field).lower(): values for field, values in zip(meta["fields"], fields, strict=True)}
            if not {*_CLASS} & found.keys() and len(layers) > 1:
                found["class"] = [layer] * len(geometries)
            here = None if meta["crs"] is None else pyproj.CRS.from_user_input(meta["crs"])
            if parts and here != crs:
                raise OptionsError(f"{name}: its layers have different CRSs; bring them to one with ogr2ogr -t_srs")
            parts.append(shapely.from_wkb(geometries))
            columns.append(found)
            crs = here
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, CRSError, shapely.errors.ShapelyError, OSError) as error:
        raise OptionsError(f"{name}: not a readable vector file ({printable(str(error))[:200]})") from error
    if not parts:
        raise OptionsError(f"{name}: has no layer with shapes; expected polygons")
    keys = [key for key in (*_CLASS, *_SURE, *_IMAGE) if any(key in found for found in columns)]
    merged: dict[str, Sequence[Any]] = {
        key: [value for found, part in zip(columns, parts, strict=True) for value in found.get(key, [None] * len(part))] for key in keys
    }
    if crs is not None and not crs.is_geographic and not crs.is_projected:
        crs = None  # the plane that geoseg states for rasters without a CRS
    return merged, np.concatenate(parts), crs


def _check_head(head: bytes, name: str, suffix: str) -> None:
    """Refuse a file that is not what its name says: GDAL would open it with any driver."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    sound = {
        ".gpkg": head.startswith(b"SQLite format 3"),
        ".fgb": head.startswith(b"fgb"),
        ".parquet": head.startswith(b"PAR1"),
    }.get(suffix, text.startswith(b"{"))
    if not sound:
        raise OptionsError(f"{name}: is no {suffix} file (it starts with {head[:8]!r}); convert it with ogr2ogr")


def _texts(columns: dict[str, Sequence[Any]], names: Sequence[str], count: int) -> NDArray[np.object_]:
    """The first of some columns that is there, as text; empty without one."""
    chosen = next((columns[name] for name in names if name in columns), None)
    texts = np.full(count, "", object)
    if chosen is not None:
        texts[:] = [_text(value) for value in chosen]
    return texts


def _text(value: object) -> str:
    if value is None or value != value:  # NaN
        return ""
    return json.dumps(int(value)) if isinstance(value, float) and value.is_integer() else printable(str(value)).strip()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
