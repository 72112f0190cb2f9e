"""Scenes of any size with the labels that lie on them, read by windows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from geoseg.datasets.pictures import Picture
from geoseg.errors import BandsError, OptionsError, ReadError
from geoseg.scene import Scene
from geoseg.window import Window

Codes = npt.NDArray[np.uint8]


class Reference(Protocol):
    """Label codes on the grid of one scene."""

    def read(self, window: Window, shape: tuple[int, int]) -> Codes:
        """Codes (h, w) of a window inside the scene, whose pixels are as many as ``shape`` says (height, width); 0 is unlabelled."""


class Labels(Protocol):
    """Where the labels of a scene come from, described; nothing is open or read."""

    def on(self, image: LabelledScene) -> Reference:
        """The labels on the grid of the image."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A raster that gives some bands of a scene.

    Attributes:
        path: a GeoTIFF, read by windows; or a picture (JPEG, PNG, BMP), which has to be decoded whole and is then kept: a first layer
            with ``indexes``, or a further one of one channel.
        bands: their names.
        indexes: their numbers in the file, from 1; None to find them by name.
    """

    path: Path
    bands: tuple[str, ...]
    indexes: tuple[int, ...] | None = None

    def scene(self, shape: tuple[int, int] | None) -> Scene | Picture:
        """Look at the file; a picture after the first layer must be as large as that, ``shape``."""
        if self.path.suffix.lower() in (".tif", ".tiff"):
            return Scene.describe(self.path, bands=self.bands, indexes=self.indexes)
        if shape is not None and len(self.bands) == 1:
            return Picture(self.path, shape, shape)
        if shape is None and self.indexes is not None:
            return Picture.describe(self.path, self.indexes)
        raise BandsError(f"{self.path}: is no GeoTIFF; only a further band with one channel may be another kind of picture")


@dataclass(frozen=True)
class LabelledScene:
    """A scene and its labels, described; no file is open, and nothing is looked at before it is needed.

    Attributes:
        name: the image's identifier in its set.
        layers: rasters on one grid, whose bands follow each other.
        labels: what lies on it.
        stated_m: metres on the ground per pixel; None for what the file says.
        else_m: the same, if the file does not say it.
    """

    name: str
    layers: tuple[Layer, ...]
    labels: Labels
    stated_m: float | None = None
    else_m: float | None = None

    @cached_property
    def scene(self) -> Scene | Picture:
        """The first layer.

        Raises:
            SceneError: if the file is not usable.
        """
        return self.layers[0].scene(None)

    @cached_property
    def parts(self) -> tuple[Scene | Picture, ...]:
        """All layers, of equal height and width.

        Raises:
            SceneError: if a file is not usable.
            ReadError: if their sizes differ.
        """
        more = tuple(layer.scene(self.scene.shape) for layer in self.layers[1:])
        for layer, part in zip(self.layers[1:], more, strict=True):
            if part.shape != self.scene.shape:
                raise size_differs(layer.path, part.shape, self.scene)
        return (self.scene, *more)

    @cached_property
    def reference(self) -> Reference:
        """The labels on the scene's grid.

        Raises:
            GeosegError: if the file of labels is not usable, or does not lie on the scene.
        """
        return self.labels.on(self)

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
        size = self.stated_m or self.scene.pixel_m or self.else_m
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


def size_differs(path: object, shape: tuple[int, int], scene: Scene | Picture) -> ReadError:
    """What to say of a file that is not as large as its image."""
    (height, width), (expected, wide) = shape, scene.shape
    return ReadError(f"{path}: is {height} x {width} pixels, but its image {scene.path} {expected} x {wide}; they must be equal")
