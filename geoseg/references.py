"""What is true of each pixel, read as label codes from rasters of classes or colours, or from polygons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoseg.classes import ClassRaster
from geoseg.errors import GeoreferenceError, OptionsError
from geoseg.legend import Colours, Legend
from geoseg.outlines import Outlines
from geoseg.polygons import on_map
from geoseg.scene import Scene
from geoseg.window import Window

CODES = 256
"""Number of label codes."""

_OTHER = 255  # the code outside of polygons

NOTHING = 0
"""The channel of a pixel without prediction, before those of the legend's classes; also the code of a pixel without label."""


class Reference(Protocol):
    """Labels of a scene, as codes that stand for sets of allowed classes."""

    @property
    def path(self) -> str:
        """Names the reference in messages."""
        ...

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """(256, 1 + K) bool, the channels each code allows; code 0 allows none. Channel 0 is "no prediction", then come the K classes."""
        ...

    def read(self, windows: Iterable[Window]) -> Iterator[NDArray[np.uint8]]:
        """Label codes (h, w) of windows in turn, 0 where nothing is labelled and outside the scene.

        Raises:
            ReadError: if a block of the file cannot be decoded.
        """
        ...


def dense(classes: int) -> NDArray[np.bool_]:
    """(256, 1 + K) bool: code k allows channel k alone, other codes nothing."""
    allowed = np.zeros((CODES, 1 + classes), bool)
    allowed[np.arange(1, 1 + classes), np.arange(1, 1 + classes)] = True
    return allowed


@dataclass(frozen=True, eq=False)
class ClassReference:
    """A raster of numbers, each of which is a label code.

    Attributes:
        raster: the file.
        codes: (256,) uint8, the code of each class id of ``raster``.
        allowed: (256, 1 + K) bool.
    """

    raster: ClassRaster
    codes: NDArray[np.uint8]
    allowed: NDArray[np.bool_]

    @property
    def scene(self) -> Scene:
        """The file as a scene."""
        return self.raster.scene

    @property
    def path(self) -> str:
        """Of the file."""
        return self.scene.path

    def read(self, windows: Iterable[Window]) -> Iterator[NDArray[np.uint8]]:
        """See `Reference`."""
        for _, classes in self.raster.read(windows):
            yield self.codes[classes]


@dataclass(frozen=True, eq=False)
class ColourReference:
    """A picture whose colours are those of a legend, as ISPRS publishes its labels; black is unlabelled.

    Attributes:
        scene: its red, green and blue band.
        legend: the colours.
        allowed: (256, 1 + K) bool.
    """

    scene: Scene
    legend: Legend
    allowed: NDArray[np.bool_]

    @property
    def path(self) -> str:
        """Of the file."""
        return self.scene.path

    def read(self, windows: Iterable[Window]) -> Iterator[NDArray[np.uint8]]:
        """See `Reference`.

        Raises:
            ReadError: if a block of the file cannot be decoded.
            OptionsError: at the first colour that is no class's.
        """
        with self.scene.reader() as reader:
            for window in windows:
                yield self._colours.decode(*reader.read(window), self.path, (window.row, window.col))

    @cached_property
    def _colours(self) -> Colours:
        return Colours(self.legend, range(1, 1 + len(self.legend)))


@dataclass(frozen=True, eq=False)
class OutlineReference:
    """Polygons, drawn into each window: a pixel belongs to a polygon that its centre lies in, to the last where there are several.

    What lies in no polygon is of another class than those drawn; unlabelled, if all of several classes are drawn; and no prediction
    is right there, if there is only one class.

    Attributes:
        path: of the file.
        shapes: (N,) polygons in pixel coordinates, column before row.
        labels: (N,) uint8, code of each.
        allowed: (256, 1 + K) bool.
    """

    path: str
    shapes: NDArray[np.object_]
    labels: NDArray[np.uint8]
    allowed: NDArray[np.bool_]

    @classmethod
    def of(cls, outlines: Outlines, grid: GeoBox, legend: Legend, labels: NDArray[np.uint8], drawn: NDArray[np.bool_]) -> OutlineReference:
        """Polygons for a raster.

        Args:
            outlines: of the file.
            grid: of the raster.
            legend: the classes.
            labels: (N,) uint8, the channel of each polygon, see `channels_of`.
            drawn: (1 + K,) bool, the channels that all references together draw.

        Raises:
            OptionsError: if there are too many classes.
            GeoreferenceError: if the polygons cannot be brought to the raster.
        """
        if len(legend) >= _OTHER:
            raise OptionsError(f"{outlines.path}: polygons are compared with at most {_OTHER - 1} classes, found {len(legend)}")
        if (outlines.crs is None) != (grid.crs is None) and not outlines.in_pixels:
            lacking = outlines.path if outlines.crs is None else "the prediction"
            raise GeoreferenceError(f"{outlines.path}: {lacking} has no CRS, so the polygons have no place in it; state it with gdal_edit")
        moved = outlines.moved(None if grid.crs is None else grid.crs.proj)
        inverse = ~grid.affine
        if not outlines.in_pixels:
            moved = shapely.transform(moved, lambda points: on_map(inverse, points))
        allowed = dense(len(legend)) & drawn
        allowed[_OTHER] = ~drawn
        allowed[_OTHER, NOTHING] = len(legend) == 1
        return cls(outlines.path, moved, labels, allowed)

    def read(self, windows: Iterable[Window]) -> Iterator[NDArray[np.uint8]]:
        """See `Reference`."""
        for window in windows:
            near = np.sort(self._tree.query(shapely.box(window.col, window.row, window.end_col, window.end_row)))
            codes = np.full(window.shape, _OTHER, np.uint8)
            if near.size:
                drawn = zip(self.shapes[near], self.labels[near].tolist(), strict=True)
                rasterio.features.rasterize(drawn, out=codes, transform=rasterio.Affine.translation(window.col, window.row))
            yield codes

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self.shapes)


def channels_of(outlines: Outlines, legend: Legend, class_name: str | None) -> NDArray[np.uint8]:
    """(N,) uint8, the channel of each polygon: that of its class by name, title or id, else that of ``class_name``.

    Raises:
        OptionsError: if a class is not in the legend, or there is none.
    """
    channels = {text: channel_of(outlines, text or class_name, legend) for text in dict.fromkeys(outlines.classes.tolist())}
    return np.array([channels[text] for text in outlines.classes], np.uint8)


def channel_of(outlines: Outlines, wanted: str | None, legend: Legend) -> int:
    """The channel of a class by its name, title or id; without one, of the only class.

    Raises:
        OptionsError: if it is not in the legend, or no class is wanted of several.
    """
    known = {text.casefold(): channel for channel, c in enumerate(legend.classes, 1) for text in (str(c.id), c.title, c.name)}
    names = ", ".join(c.name for c in legend.classes)
    if wanted is None and len(legend) == 1:
        return 1
    if wanted is None:
        raise OptionsError(f"{outlines.path}: does not say what its polygons are (class_name); say it with --class: {names}")
    if wanted.casefold() not in known:
        raise OptionsError(f"{outlines.path}: has polygons of class {wanted!r}; legend {legend.name!r} has {names}; use its names or ids")
    return known[wanted.casefold()]
