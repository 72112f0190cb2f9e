"""Scenes with polygons around their instances."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray

from geoseg.errors import GeoreferenceError, OptionsError
from geoseg.legend import Legend
from geoseg.options import nearest
from geoseg.outlines import Outlines
from geoseg.polygons import on_map
from geoseg.scene import Scene
from geoseg.window import Window

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
            polygons: a file that `Outlines.read` takes.
            legend: the classes.
            bands: names of the bands, in the model's order.
            resolution_m: pixel size of the model.
            label: name of the class of all polygons; None if the file says it of each.

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
    outlines, crs = Outlines.read(path), scene.grid.crs
    if outlines.crs is not None and crs is None:
        raise GeoreferenceError(f"{path}: has CRS {outlines.crs.name} but {scene.path} has none; give the scene a CRS first")
    names = [label or str(name) for name in outlines.classes]
    if "" in names:
        raise OptionsError(
            f"{path}: has polygons of no class; fill their column 'class_name', or name the class of all in the recipe (label)"
        )
    shapes = outlines.moved(None if crs is None else crs.proj)
    inverse = ~scene.grid.transform
    return shapes if outlines.in_pixels else shapely.transform(shapes, lambda points: on_map(inverse, points)), names
