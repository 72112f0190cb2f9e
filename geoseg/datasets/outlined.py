"""Scenes with polygons around their instances."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyogrio.errors
import rasterio.features
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from geoseg.errors import GeoreferenceError, OptionsError
from geoseg.legend import Legend
from geoseg.options import nearest
from geoseg.polygons import on_map
from geoseg.scene import Scene
from geoseg.window import Window

COLUMN = "class_name"
"""The column that names the class of a polygon, as in the GeoPackages of ``geoseg predict``."""

LEAST_PIXELS = 16
"""What shows fewer pixels in a chip is left out of it."""


@dataclass(frozen=True, eq=False)
class OutlinedScene:
    """A scene at the resolution of a model, and the polygons around all its instances of the classes.

    Attributes:
        scene: maybe resampled.
        shapes: (P,) polygons in pixels of the scene, x = column, y = row.
        labels: (P,) int64, 1 to K in the legend's order.
    """

    scene: Scene
    shapes: NDArray[np.object_]
    labels: NDArray[np.int64]

    @classmethod
    def read(
        cls, scene: Path, polygons: Path, legend: Legend, *, bands: tuple[str, ...], resolution_m: float, label: str | None = None
    ) -> OutlinedScene:
        """Describe a scene and read its polygons, of all layers of the file and in any CRS.

        Args:
            scene: GeoTIFF.
            polygons: GeoPackage, GeoJSON or any other vector file.
            legend: the classes.
            bands: names of the bands, in the model's order.
            resolution_m: pixel size of the model.
            label: name of the class of all polygons; None if the column ``class_name`` says it of each.

        Raises:
            SceneError: if the scene cannot be used.
            OptionsError: if the file cannot be read, or a polygon has no class of the legend.
            GeoreferenceError: if the file has a CRS but the scene has none.
        """
        described = Scene.describe(scene, bands=bands)
        ratio = (described.pixel_m or resolution_m) / resolution_m
        height, width = (max(1, round(length * ratio)) for length in described.shape)
        seen = described.resampled((height, width))
        channels = {c.name: channel for channel, c in enumerate(legend.classes, start=1)}
        shapes, names = _read_polygons(polygons, seen, label)
        for name in sorted(set(names) - channels.keys()):
            raise OptionsError(f"{polygons}: class {name!r} is not in legend {legend.name!r}; {nearest(name, channels)}")
        return cls(seen, shapes, np.array([channels[name] for name in names], np.int64))

    def cut(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.int64], NDArray[np.bool_]]:
        """The pixels of a window, and the instances in it.

        A pixel is an instance's if its centre lies in the polygon. An instance that the window cuts is the part that it shows;
        below ``LEAST_PIXELS`` pixels with data it is left out. Where polygons overlap, so do the masks.

        Returns:
            pixels (B, h, w) in the scene's dtype, where they are data (h, w) bool, labels (G,) int64 and masks (G, h, w) bool.

        Raises:
            ReadError: if a part of the scene cannot be decoded.
        """
        pixels, valid = self.scene.read(window)
        frame = shapely.box(window.col, window.row, window.end_col, window.end_row)
        near = np.flatnonzero(shapely.intersects(self.shapes, frame))
        moved = shapely.transform(self.shapes[near], lambda points: points - [window.col, window.row])
        masks = [rasterio.features.rasterize([shape], window.shape, dtype="uint8").astype(bool) & valid for shape in moved]
        kept = [number for number, mask in enumerate(masks) if mask.sum() >= LEAST_PIXELS]
        found = np.stack([masks[number] for number in kept]) if kept else np.zeros((0, *window.shape), bool)
        return pixels, valid, self.labels[near[kept]], found


def _read_polygons(path: Path, scene: Scene, label: str | None) -> tuple[NDArray[np.object_], list[str]]:
    """Polygons in pixels of the scene, and the names of their classes."""
    shapes, names = [np.empty(0, object)], []
    try:
        layers = [name for name, kind in pyogrio.list_layers(path) if kind is not None]
        for layer in layers:
            meta, _, geometries, columns = pyogrio.raw.read(path, layer=layer)
            if label is None and COLUMN not in meta["fields"]:
                raise OptionsError(
                    f"{path}: layer {layer!r} has no column {COLUMN!r}; add it, or name the class of all in the recipe (label)"
                )
            found = shapely.from_wkb(geometries)
            usable = np.isin(shapely.get_type_id(found), (3, 6)) & ~shapely.is_empty(found)
            given = columns[meta["fields"].tolist().index(COLUMN)] if label is None else np.full(len(found), label)
            shapes.append(_in_pixels(shapely.make_valid(found[usable], method="structure", keep_collapsed=False), meta["crs"], scene, path))
            names += [str(name) for name in given[usable]]
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError) as error:
        raise OptionsError(f"{path}: not a readable vector file ({' '.join(str(error).split())})") from error
    return np.concatenate(shapes), names


def _in_pixels(shapes: NDArray[np.object_], crs: str | None, scene: Scene, path: Path) -> NDArray[np.object_]:
    if crs is not None:
        if scene.grid.crs is None:
            raise GeoreferenceError(f"{path}: has CRS {crs} but {scene.path} has none; give the scene a CRS first")
        change = Transformer.from_crs(CRS.from_user_input(crs), scene.grid.crs.proj, always_xy=True)
        shapes = shapely.transform(shapes, lambda xy: np.column_stack(change.transform(xy[:, 0], xy[:, 1])))
    inverse = ~scene.grid.transform
    moved: NDArray[np.object_] = shapely.transform(shapes, lambda points: on_map(inverse, points))
    return moved
