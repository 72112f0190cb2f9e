"""Labels that are polygons, boxes or points."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyogrio
import pyogrio.errors
import rasterio.features
import shapely
from affine import Affine
from pyproj import CRS, Transformer

from geoseg.datasets.scenes import Codes, LabelledScene, Reference
from geoseg.errors import GeoreferenceError, OptionsError
from geoseg.options import nearest
from geoseg.polygons import on_map
from geoseg.scene import Scene
from geoseg.window import Window

Shapes = npt.NDArray[Any]
_POINT, _MULTIPOINT, _POLYGON, _MULTIPOLYGON = 0, 4, 3, 6
_DEGREES = ("lon", "longitude")
_CSV = {"X_POSSIBLE_NAMES": "x,lon,longitude", "Y_POSSIBLE_NAMES": "y,lat,latitude", "GEOM_POSSIBLE_NAMES": "wkt,geometry"}


@dataclass(frozen=True, slots=True)
class Parts:
    """How the footprints of buildings are drawn so that neighbours can be told apart.

    The rim of a footprint, inside of it, is one class, and what lies between near footprints, and on the wall that two share, another:
    the masks of the winners of SpaceNet 4 (SpaceNetChallenge/SpaceNet_Off_Nadir_Solutions, cannab: body, contour and contact), after
    the separating border of Ronneberger et al. 2015, arXiv:1505.04597, section 3.

    Attributes:
        border: code of the rim.
        border_m: its width in metres.
        contact: code of what is nearer than half of ``contact_m`` to two footprints.
        contact_m: footprints that are nearer than this, in metres, have contact; 0 for none.
    """

    border: int
    border_m: float
    contact: int = 0
    contact_m: float = 0.0

    def drawn(self, shapes: Shapes, codes: Codes, pixel_m: float) -> tuple[Shapes, Codes]:
        """Footprints in pixel coordinates and their codes, followed by the rims and the contacts, which are drawn over them."""
        shapes = shapely.make_valid(shapes, method="structure", keep_collapsed=False)
        rims = shapely.difference(shapes, shapely.buffer(shapes, -self.border_m / pixel_m, join_style="mitre"))
        contacts = np.empty(0, object)
        if self.contact_m:
            wide = shapely.buffer(shapes, self.contact_m / 2 / pixel_m)
            one, other = shapely.STRtree(wide).query(wide, predicate="intersects")
            contacts = shapely.intersection(wide[one[one < other]], wide[other[one < other]])
        kinds = np.repeat(np.array([self.border, self.contact], np.uint8), [len(rims), len(contacts)])
        shapes, codes = np.concatenate([shapes, rims, contacts]), np.concatenate([codes, kinds])
        areas = shapely.area(shapes) > 0
        return shapes[areas], codes[areas]


@dataclass(frozen=True)
class VectorLabels:
    """Features of a vector file, which is read once for all its scenes; where several overlap, the last in the file counts.

    Attributes:
        path: any vector file, in any CRS (then the scene must have one too) or in the scene's. A CSV has the columns ``x`` and ``y`` in the
            scene's CRS, ``lon`` and ``lat`` in degrees, or ``WKT``.
        outside: code of what lies in no feature.
        codes: code of each value of the column; with None as its only key, of every feature.
        column: that says the class; None if there is one class.
        layer: of the file; None for its first.
        touched: whether all pixels that a feature touches are its, instead of those whose centre lies in it.
        in_pixels: whether the coordinates are columns and rows of the scene's pixels.
        lenient: whether what is no polygon is left out (SpaceNet 8 has roads in the same file) instead of refused.
        radius_m: of the disks that points stand for, in metres; None to refuse points.
        outside_m: how far from a feature, in metres, ``outside`` is known; None for everywhere.
        parts: how footprints are drawn; None for as they are.
    """

    path: Path
    outside: int
    codes: Mapping[str | None, int]
    column: str | None = None
    layer: str | None = None
    touched: bool = False
    in_pixels: bool = False
    lenient: bool = False
    radius_m: float | None = None
    outside_m: float | None = None
    parts: Parts | None = None

    def on(self, image: LabelledScene) -> Reference:
        """Read the features that lie on the scene.

        Raises:
            OptionsError: if the file is not a vector file with the column, or a value of the column has no code.
            GeoreferenceError: if the file has a CRS and the scene has none.
        """
        crs, shapes, codes = self.features
        if not self.in_pixels:
            shapes = _to_pixels(shapes, crs, image, self.path)
        if self.radius_m is not None:
            points = np.isin(shapely.get_type_id(shapes), (_POINT, _MULTIPOINT))
            shapes = np.where(points, shapely.buffer(shapes, self.radius_m / image.gsd_m), shapes)
        if self.parts is not None:
            shapes, codes = self.parts.drawn(shapes, codes, image.gsd_m)
        outside = self.outside
        if self.outside_m is not None:
            around = shapely.buffer(shapes, self.outside_m / image.gsd_m)
            shapes, codes = np.concatenate([around, shapes]), np.concatenate([np.full(len(codes), outside, np.uint8), codes])
            outside = 0
        near = shapely.intersects(shapes, shapely.box(0, 0, image.shape[1], image.shape[0]))
        return _Polygons(image.shape, shapes[near], codes[near], outside, self.touched)

    @cached_property
    def features(self) -> tuple[Any, Shapes, Codes]:
        """CRS of the file (None without one), its features and their codes; see ``on``."""
        crs, shapes, values = _features(self.path, self.layer, self.column)
        usable = (_POLYGON, _MULTIPOLYGON) if self.radius_m is None else (_POLYGON, _MULTIPOLYGON, _POINT, _MULTIPOINT)
        plain = np.isin(shapely.get_type_id(shapes), usable)
        if not self.lenient and not plain.all():
            odd = shapes[~plain]
            kind = "nothing" if odd[0] is None else odd[0].geom_type
            wanted = "polygons only, or points with radius_m" if self.radius_m is None else "polygons and points only"
            raise OptionsError(f"{self.path}: {len(odd)} of its features are no polygons (the first is a {kind}); expected {wanted}")
        codes = [self._code(value) for value, kept in zip(values, plain, strict=True) if kept]
        return crs, shapes[plain], np.array(codes, np.uint8)

    def _code(self, value: Any) -> int:
        key = None if self.column is None else str(value)
        if key not in self.codes:
            known = [str(each) for each in self.codes]
            raise OptionsError(
                f"{self.path}: {self.column!r} is {key!r} in a feature, for which no class is stated; {nearest(str(key), known)}"
            )
        return self.codes[key]


@dataclass(frozen=True)
class FootprintTable:
    """A CSV table with one row a polygon in pixel coordinates, as SpaceNet's summary tables.

    Attributes:
        path: CSV with the columns ``ImageId`` and ``PolygonWKT_Pix`` (SpaceNet 7: ``filename`` and ``geometry``).
    """

    path: Path

    @cached_property
    def rows(self) -> Mapping[str, tuple[str, ...]]:
        """WKT of the polygons of each image.

        Raises:
            OptionsError: if the file is no such table.
        """
        csv.field_size_limit(sys.maxsize)
        found: dict[str, list[str]] = {}
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                names = set(reader.fieldnames or ())
                image, wkt = ("filename", "geometry") if "filename" in names else ("ImageId", "PolygonWKT_Pix")
                if not {image, wkt} <= names:
                    raise OptionsError(f"{self.path}: has the columns {', '.join(sorted(names))}; expected ImageId and PolygonWKT_Pix")
                for row in reader:
                    found.setdefault(row[image], []).append(row[wkt])
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise OptionsError(f"{self.path}: not a readable table ({error})") from error
        return {name: tuple(rows) for name, rows in found.items()}


@dataclass(frozen=True, slots=True)
class TableLabels:
    """The polygons that a table has for one image.

    Attributes:
        table: of many images.
        names: under which the table may know the image.
        code: of what lies in a polygon.
        outside: code of what does not.
        touched: see ``VectorLabels``; the same for ``parts``.
        parts: how they are drawn.
    """

    table: FootprintTable
    names: tuple[str, ...]
    code: int
    outside: int
    touched: bool = False
    parts: Parts | None = None

    def on(self, image: LabelledScene) -> Reference:
        """Take the image's rows; an image without rows has no polygons.

        Raises:
            OptionsError: if the file is no such table, or a row of the image is not WKT.
        """
        rows = [wkt for name in dict.fromkeys(self.names) for wkt in self.table.rows.get(name, ())]
        try:
            shapes: Shapes = shapely.force_2d(np.array(shapely.from_wkt(rows), dtype=object))
        except shapely.errors.GEOSException as error:
            raise OptionsError(f"{self.table.path}: a polygon of image {self.names[0]} is not WKT ({error})") from error
        shapes = shapes[~shapely.is_empty(shapes)]
        codes = np.full(len(shapes), self.code, np.uint8)
        if self.parts is not None:
            shapes, codes = self.parts.drawn(shapes, codes, image.gsd_m)
        return _Polygons(image.shape, shapes, codes, self.outside, self.touched)


class _Polygons:
    """Codes of the polygons, in pixel coordinates, in which pixels lie."""

    def __init__(self, shape: tuple[int, int], shapes: Shapes, codes: Codes, outside: int, touched: bool) -> None:
        self.shape, self.shapes, self.codes, self.outside, self.touched = shape, shapes, codes, outside, touched
        self.tree = shapely.STRtree(shapes)

    def read(self, window: Window, shape: tuple[int, int]) -> Codes:
        y, x = self.shape[0] / shape[0], self.shape[1] / shape[1]
        near = self.tree.query(shapely.box(window.col * x, window.row * y, window.end_col * x, window.end_row * y))
        codes = np.full(window.shape, self.outside, np.uint8)
        if len(near):
            drawn = [(self.shapes[i], int(self.codes[i])) for i in np.sort(near)]
            place = Affine.scale(x, y) * Affine.translation(window.col, window.row)
            rasterio.features.rasterize(drawn, out=codes, transform=place, all_touched=self.touched)
        return codes


def _features(path: Path, layer: str | None, column: str | None) -> tuple[Any, Shapes, Sequence[Any]]:
    """CRS, geometries and values of the column of a vector file; an empty file has none."""
    if path.is_file() and not path.stat().st_size:
        return None, np.empty(0, object), ()
    table = path.suffix.lower() == ".csv"
    try:
        names = pyogrio.read_info(path, layer=layer)["fields"].tolist() if table or column is not None else []
        if column is not None and column not in names:
            raise OptionsError(f"{path}: has no column {column!r}; {nearest(column, names)}")
        options = _CSV if table else {}
        meta, _, geometries, fields = pyogrio.raw.read(path, layer=layer, columns=[] if column is None else [column], **options)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError) as error:
        raise OptionsError(f"{path}: not a readable vector file ({' '.join(str(error).split())})") from error
    if table and geometries is None:
        raise OptionsError(f"{path}: has the columns {', '.join(names)}; expected x and y, lon and lat, or WKT")
    shapes = np.empty(0, object) if geometries is None else shapely.force_2d(shapely.from_wkb(geometries))
    crs = "EPSG:4326" if table and any(name.lower() in _DEGREES for name in names) else meta["crs"]
    return crs, shapes, fields[0] if column is not None else [None] * len(shapes)


def _to_pixels(shapes: Shapes, crs: Any, image: LabelledScene, path: Path) -> Shapes:
    """Shapes in the scene's pixel coordinates."""
    scene = image.scene
    if not isinstance(scene, Scene):
        raise GeoreferenceError(f"{path}: {scene.path} has no place on Earth; give a GeoTIFF, or polygons in pixels")
    inverse = ~scene.grid.transform
    change = None
    if crs is not None and len(shapes):
        if scene.grid.crs is None:
            raise GeoreferenceError(f"{path}: has CRS {crs}, but its image {scene.path} has none; give the image one with gdal_edit -a_srs")
        own, target = CRS.from_user_input(crs), CRS.from_wkt(scene.grid.crs.to_wkt())
        change = None if own.equals(target, ignore_axis_order=True) else Transformer.from_crs(own, target, always_xy=True)

    def move(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return on_map(inverse, points if change is None else np.column_stack(change.transform(points[:, 0], points[:, 1])))

    return np.asarray(shapely.transform(shapes, move), dtype=object)
