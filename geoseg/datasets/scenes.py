"""Scenes of any size with the labels that lie on them, read by windows."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyogrio
import pyogrio.errors
import rasterio.features
import shapely
from affine import Affine
from PIL import Image, UnidentifiedImageError
from pyproj import CRS, Transformer

from geoseg.classes import band_of
from geoseg.errors import BandsError, GeoreferenceError, OptionsError, ReadError
from geoseg.options import nearest
from geoseg.scene import Scene, Stretch
from geoseg.window import Window

Codes = npt.NDArray[np.uint8]
_PICTURES = 40
_SLACK = 32
"""How far a colour may be from 0 and 255 a channel: some published tiles say (252, 255, 0) for a car."""
_BIT = np.where(np.arange(256) <= _SLACK, 0, np.where(np.arange(256) >= 255 - _SLACK, 1, 8)).astype(np.uint8)
"""Of each value of a channel: 0 for low, 1 for high, 8 for neither."""
_POLYGON, _MULTIPOLYGON = 3, 6


class Reference(Protocol):
    """Label codes on the grid of one scene."""

    def read(self, window: Window, shape: tuple[int, int]) -> Codes:
        """Codes (h, w) of a window inside the scene, whose pixels are as many as ``shape`` says (height, width); 0 is unlabelled."""


class Labels(Protocol):
    """Where the labels of a scene come from, described; nothing is open or read."""

    def on(self, scene: Scene) -> Reference:
        """The labels on the grid of the scene."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A raster that gives some bands of a scene.

    Attributes:
        path: a GeoTIFF, read by windows; or a one-band picture (JPEG, PNG, BMP), which has to be decoded whole and is then kept.
        bands: their names.
        indexes: their numbers in the file, from 1; None to find them by name.
    """

    path: Path
    bands: tuple[str, ...]
    indexes: tuple[int, ...] | None = None

    def scene(self, shape: tuple[int, int] | None) -> Scene | _Picture:
        """Look at the file; a picture must be as large as the first layer, ``shape``."""
        if self.path.suffix.lower() in (".tif", ".tiff"):
            return Scene.describe(self.path, bands=self.bands, indexes=self.indexes)
        if shape is None or len(self.bands) > 1:
            raise BandsError(f"{self.path}: is no GeoTIFF; only a further band with one channel may be another kind of picture")
        return _Picture(self.path, shape, shape)


@dataclass(frozen=True)
class LabelledScene:
    """A scene and its labels, described; no file is open, and nothing is looked at before it is needed.

    Attributes:
        name: the image's identifier in its set.
        layers: rasters on one grid, whose bands follow each other.
        labels: what lies on it.
        stated_m: metres on the ground per pixel; None for what the file says.
    """

    name: str
    layers: tuple[Layer, ...]
    labels: Labels
    stated_m: float | None = None

    @cached_property
    def scene(self) -> Scene:
        """The first layer.

        Raises:
            SceneError: if the file is not usable.
        """
        first = self.layers[0].scene(None)
        assert isinstance(first, Scene)
        return first

    @cached_property
    def parts(self) -> tuple[Scene | _Picture, ...]:
        """All layers, of equal height and width.

        Raises:
            SceneError: if a file is not usable.
            ReadError: if their sizes differ.
        """
        more = tuple(layer.scene(self.scene.shape) for layer in self.layers[1:])
        for layer, part in zip(self.layers[1:], more, strict=True):
            if part.shape != self.scene.shape:
                raise _size_differs(layer.path, part.shape, self.scene)
        return (self.scene, *more)

    @cached_property
    def reference(self) -> Reference:
        """The labels on the scene's grid.

        Raises:
            GeosegError: if the file of labels is not usable, or does not lie on the scene.
        """
        return self.labels.on(self.scene)

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)`` in pixels."""
        return self.scene.shape

    @cached_property
    def gsd_m(self) -> float:
        """Metres on the ground per pixel.

        Raises:
            OptionsError: if neither the set nor the file says it.
        """
        size = self.stated_m or self.scene.pixel_m
        if size is None:
            raise OptionsError(f"{self.layers[0].path}: does not say how large its pixels are on the ground; state it as gsd_m in the set")
        return size

    def reduced(self, pixel_m: float) -> tuple[int, int]:
        """Shape of the grid over the same ground whose pixels measure ``pixel_m``."""
        factor = self.gsd_m / pixel_m
        height, width = self.shape
        return max(1, round(height * factor)), max(1, round(width * factor))

    def read(self, window: Window, shape: tuple[int, int]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_], Codes]:
        """Pixels, validity and labels of a window.

        Args:
            window: anywhere, in pixels of a grid over the scene's ground.
            shape: height and width of that grid; the scene's own, or others: pixels are averaged or cubic, labels nearest.

        Returns:
            pixels (B, h, w) in the files' dtype; valid (h, w) bool, True = data in all bands; codes (h, w) uint8, 0 where not valid.

        Raises:
            ReadError: if a block of a file cannot be decoded.
        """
        read = [part.resampled(shape).read(window) for part in self.parts]
        valid = np.logical_and.reduce([valid for _, valid in read])
        codes = self.codes(window, shape)
        pixels = np.concatenate([pixels for pixels, _ in read]) if len(read) > 1 else read[0][0]
        codes[~valid] = 0
        return pixels, valid, codes

    def codes(self, window: Window, shape: tuple[int, int]) -> Codes:
        """The labels of ``read`` alone, also where the image has no data."""
        codes = np.zeros(window.shape, np.uint8)
        inside = window & Window.of(shape)
        if inside is not None:
            codes[inside.within(window)] = self.reference.read(inside, shape)
        return codes


@dataclass(frozen=True, slots=True)
class ColourLabels:
    """A raster of three bands whose colours mean classes, as ISPRS publishes them.

    Attributes:
        path: GeoTIFF, as large as the scene; its place on Earth, which the published files lack, does not matter.
        colours: code of each colour; its channels are 0 or 255. Black and other colours are unlabelled.
    """

    path: Path
    colours: Mapping[tuple[int, int, int], int]

    def on(self, scene: Scene) -> Reference:
        """Look at the file.

        Raises:
            SceneError: if it is not usable, or has not three bands.
            ReadError: if it is not as large as the scene.
        """
        codes = np.zeros(8, np.uint8)
        for (red, green, blue), code in self.colours.items():
            codes[(red > 127) + 2 * (green > 127) + 4 * (blue > 127)] = code
        labels = Scene.describe(self.path, indexes=(1, 2, 3), bands=("red", "green", "blue"))
        if labels.dtype != "uint8":
            raise ReadError(f"{self.path}: has pixels of type {labels.dtype}, expected a picture in colours (uint8)")
        return _Raster(_same_size(labels, scene), codes)


@dataclass(frozen=True, slots=True)
class ClassLabels:
    """A raster of whole numbers that mean classes.

    Attributes:
        path: GeoTIFF of one band, as large as the scene, with or without a palette.
        codes: code of each number; others, and what the file marks as no data, are unlabelled.
    """

    path: Path
    codes: Mapping[int, int]

    def on(self, scene: Scene) -> Reference:
        """Look at the file.

        Raises:
            SceneError: if it is not usable.
            ReadError: if it is not as large as the scene.
        """
        return _Raster(_same_size(band_of(self.path), scene), _table(self.codes))


@dataclass(frozen=True)
class VectorLabels:
    """Polygons of a vector file, which is read once for all its scenes; where several overlap, the last in the file counts.

    Attributes:
        path: any vector file, in any CRS (then the scene must have one too) or in the scene's.
        outside: code of what lies in no polygon.
        codes: code of each value of the column; with None as its only key, of every polygon.
        column: that says the class; None if there is one class.
        layer: of the file; None for its first.
        touched: whether all pixels that a polygon touches are its, instead of those whose centre lies in it.
        in_pixels: whether the coordinates are columns and rows of the scene's pixels.
        lenient: whether what is no polygon is left out (SpaceNet 8 has roads in the same file) instead of refused.
    """

    path: Path
    outside: int
    codes: Mapping[str | None, int]
    column: str | None = None
    layer: str | None = None
    touched: bool = False
    in_pixels: bool = False
    lenient: bool = False

    def on(self, scene: Scene) -> Reference:
        """Read the polygons that lie on the scene.

        Raises:
            OptionsError: if the file is not a vector file with the column, or a value of the column has no code.
            GeoreferenceError: if the file has a CRS and the scene has none.
        """
        shapes, codes = self.features[1:]
        if not self.in_pixels:
            shapes = _to_pixels(shapes, self.features[0], scene, self.path)
        near = shapely.intersects(shapes, shapely.box(0, 0, scene.shape[1], scene.shape[0]))
        return _Polygons(scene.shape, shapes[near], codes[near], self.outside, self.touched)

    @cached_property
    def features(self) -> tuple[Any, npt.NDArray[Any], Codes]:
        """CRS of the file (None without one), polygons and their codes; see ``on``."""
        crs, shapes, values = _features(self.path, self.layer, self.column)
        plain = np.isin(shapely.get_type_id(shapes), (_POLYGON, _MULTIPOLYGON))
        if not self.lenient and not plain.all():
            odd = shapes[~plain]
            kind = "nothing" if odd[0] is None else odd[0].geom_type
            raise OptionsError(f"{self.path}: {len(odd)} of its features are no polygons (the first is a {kind}); expected polygons only")
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
        image: names under which the table may know the image.
        code: of what lies in a polygon.
        outside: code of what does not.
        touched: see ``VectorLabels``.
    """

    table: FootprintTable
    image: tuple[str, ...]
    code: int
    outside: int
    touched: bool = False

    def on(self, scene: Scene) -> Reference:
        """Take the image's rows; an image without rows has no polygons.

        Raises:
            OptionsError: if the file is no such table, or a row of the image is not WKT.
        """
        rows = [wkt for name in dict.fromkeys(self.image) for wkt in self.table.rows.get(name, ())]
        try:
            shapes: npt.NDArray[Any] = shapely.force_2d(np.array(shapely.from_wkt(rows), dtype=object))
        except shapely.errors.GEOSException as error:
            raise OptionsError(f"{self.table.path}: a polygon of image {self.image[0]} is not WKT ({error})") from error
        shapes = shapes[~shapely.is_empty(shapes)]
        return _Polygons(scene.shape, shapes, np.full(len(shapes), self.code, np.uint8), self.outside, self.touched)


@dataclass(frozen=True, slots=True)
class _Raster:
    """Codes looked up from a raster."""

    scene: Scene
    codes: Codes

    def read(self, window: Window, shape: tuple[int, int]) -> Codes:
        rows, cols = (
            _nearest(first, last, length, native)
            for first, last, length, native in zip(
                (window.row, window.col), (window.end_row, window.end_col), shape, self.scene.shape, strict=True
            )
        )
        span = Window.between(int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1)
        pixels, valid = self.scene.read(span)
        values = self._colour(pixels) if len(pixels) == 3 else pixels[0]
        known = valid & (values >= 0) & (values < len(self.codes))
        codes = self.codes[values] if known.all() else np.where(known, self.codes[np.where(known, values, 0)], 0).astype(np.uint8)
        return codes if codes.shape == window.shape else codes[np.ix_(rows - span.row, cols - span.col)]

    def _colour(self, pixels: npt.NDArray[Any]) -> Codes:
        """Corner of the colour cube, 0 to 7."""
        red, green, blue = (_BIT[band] for band in pixels)
        corner: Codes = red + 2 * green + 4 * blue
        if corner.max(initial=0) > 7:
            row, col = np.argwhere(corner > 7)[0]
            seen = tuple(pixels[:, row, col].tolist())
            raise ReadError(f"{self.scene.path}: holds the colour {seen}; expected labels whose channels are 0 or 255")
        return corner


class _Polygons:
    """Codes of the polygons, in pixel coordinates, in which pixels lie."""

    def __init__(self, shape: tuple[int, int], shapes: npt.NDArray[Any], codes: Codes, outside: int, touched: bool) -> None:
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


@dataclass(frozen=True, slots=True)
class _Picture:
    """A one-band picture that is decoded whole, on the grid ``shape``; ``native`` is the grid of its scene."""

    path: Path
    native: tuple[int, int]
    shape: tuple[int, int]
    dtype: str = "uint8"
    bands: tuple[int, ...] = (1,)

    def stretch(self, percentiles: tuple[float, float]) -> Stretch:
        low, high = np.percentile(_decoded(self.path, self.native, self.native), percentiles)
        return Stretch((float(low),), (float(max(high, low + 1)),))

    def resampled(self, shape: tuple[int, int]) -> _Picture:
        return _Picture(self.path, self.native, shape)

    def read(self, window: Window) -> tuple[Codes, npt.NDArray[np.bool_]]:
        pixels, valid = np.zeros((1, *window.shape), np.uint8), np.zeros(window.shape, bool)
        inside = window & Window.of(self.shape)
        if inside is not None:
            there = inside.within(window)
            pixels[0][there] = _decoded(self.path, self.native, self.shape)[inside.within(Window.of(self.shape))]
            valid[there] = True
        return pixels, valid


@lru_cache(maxsize=_PICTURES)
def _decoded(path: Path, native: tuple[int, int], shape: tuple[int, int]) -> Codes:
    """A grey picture (H, W); one row or column that it lacks (Potsdam's heights of 3_13 are 5999 pixels wide) repeats the last."""
    try:
        with Image.open(path) as file:
            pixels = np.asarray(file.convert("L"))
    except (OSError, UnidentifiedImageError) as error:
        raise ReadError(f"{path}: cannot be decoded ({error}); expected an 8-bit picture of one channel") from error
    lacking = [wanted - found for wanted, found in zip(native, pixels.shape, strict=True)]
    if not all(0 <= rows <= 1 for rows in lacking):
        raise ReadError(f"{path}: is {pixels.shape[0]} x {pixels.shape[1]} pixels, but its image {native[0]} x {native[1]}; expected equal")
    pixels = np.pad(pixels, [(0, rows) for rows in lacking], mode="edge")
    if shape != native:
        kernel = Image.Resampling.BOX if shape[0] < native[0] else Image.Resampling.BICUBIC
        pixels = np.asarray(Image.fromarray(pixels).resize(shape[::-1], kernel))
    return pixels


def _nearest(first: int, last: int, length: int, native: int) -> npt.NDArray[np.intp]:
    """Native pixels under the centres of the pixels first to last of a grid of so many pixels."""
    if length == native:
        return np.arange(first, last)
    return ((np.arange(first, last) + 0.5) * native / length).astype(np.intp)


def _table(codes: Mapping[int, int]) -> Codes:
    table = np.zeros(max(codes, default=0) + 1, np.uint8)
    for value, code in codes.items():
        table[value] = code
    return table


def _same_size(labels: Scene, scene: Scene) -> Scene:
    if labels.shape != scene.shape:
        raise _size_differs(Path(labels.path), labels.shape, scene)
    return labels


def _size_differs(path: Path, shape: tuple[int, int], scene: Scene) -> ReadError:
    (height, width), (expected, wide) = shape, scene.shape
    return ReadError(f"{path}: is {height} x {width} pixels, but its image {scene.path} {expected} x {wide}; they must be equal")


def _features(path: Path, layer: str | None, column: str | None) -> tuple[Any, npt.NDArray[Any], Sequence[Any]]:
    """CRS, geometries and values of the column of a vector file; an empty file has none."""
    if path.is_file() and not path.stat().st_size:
        return None, np.empty(0, object), ()
    try:
        meta, _, geometries, fields = pyogrio.raw.read(path, layer=layer, columns=[] if column is None else [column])
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError) as error:
        raise OptionsError(f"{path}: not a readable vector file ({' '.join(str(error).split())})") from error
    if column is not None and column not in meta["fields"]:
        raise OptionsError(f"{path}: has no column {column!r}; {nearest(column, pyogrio.read_info(path, layer=layer)['fields'])}")
    shapes = np.empty(0, object) if geometries is None else shapely.force_2d(shapely.from_wkb(geometries))
    return meta["crs"], shapes, fields[0] if column is not None else [None] * len(shapes)


def _to_pixels(shapes: npt.NDArray[Any], crs: Any, scene: Scene, path: Path) -> npt.NDArray[Any]:
    """Shapes in the scene's pixel coordinates."""
    inverse = ~scene.grid.transform
    change = None
    if crs is not None and len(shapes):
        if scene.grid.crs is None:
            raise GeoreferenceError(f"{path}: has CRS {crs}, but its image {scene.path} has none; give the image one with gdal_edit -a_srs")
        own, target = CRS.from_user_input(crs), CRS.from_wkt(scene.grid.crs.to_wkt())
        change = None if own.equals(target, ignore_axis_order=True) else Transformer.from_crs(own, target, always_xy=True)

    def move(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x, y = (points[:, 0], points[:, 1]) if change is None else change.transform(points[:, 0], points[:, 1])
        return np.column_stack([inverse.a * x + inverse.b * y + inverse.c, inverse.d * x + inverse.e * y + inverse.f])

    return np.asarray(shapely.transform(shapes, move), dtype=object)
