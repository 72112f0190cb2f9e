"""Labels that are rasters, of colours or of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from geoseg.classes import band_of
from geoseg.datasets.pictures import Picture
from geoseg.datasets.scenes import Codes, LabelledScene, Reference, size_differs
from geoseg.errors import ReadError
from geoseg.legend import Colours, Legend
from geoseg.scene import Scene
from geoseg.window import Window

R = TypeVar("R", Scene, Picture)


@dataclass(frozen=True, slots=True)
class ColourLabels:
    """A raster of three bands whose colours mean classes, as ISPRS publishes them; see `geoseg.legend.Colours`.

    Attributes:
        path: GeoTIFF, as large as the scene; its place on Earth, which the published files lack, does not matter.
        legend: the colours; the code of a class is its id.
    """

    path: Path
    legend: Legend

    def on(self, image: LabelledScene) -> Reference:
        """Look at the file.

        Raises:
            SceneError: if it is not usable, or has not three bands.
            ReadError: if it is not as large as the scene.
        """
        labels = Scene.describe(self.path, indexes=(1, 2, 3), bands=("red", "green", "blue"))
        if labels.dtype != "uint8":
            raise ReadError(f"{self.path}: has pixels of type {labels.dtype}, expected a picture in colours (uint8)")
        return _Coloured(_checked(labels, image), Colours(self.legend, self.legend.ids))


@dataclass(frozen=True, slots=True)
class ClassLabels:
    """A raster of whole numbers that mean classes.

    Attributes:
        path: GeoTIFF of one band, or an 8-bit PNG, as large as the scene, with or without a palette.
        codes: code of each number; others, and what the file marks as no data, are unlabelled.
    """

    path: Path
    codes: Mapping[int, int]

    def on(self, image: LabelledScene) -> Reference:
        """Look at the file.

        Raises:
            SceneError: if it is not usable.
            ReadError: if it is not as large as the scene.
        """
        if self.path.suffix.lower() == ".png":
            return _Numbered(_checked(Picture.describe(self.path, (1,)), image), _table(self.codes))
        return _Numbered(_checked(band_of(self.path), image), _table(self.codes))


@dataclass(frozen=True, slots=True)
class _Numbered:
    """Codes looked up from a raster of numbers."""

    scene: Scene | Picture
    codes: Codes

    def read(self, window: Window, shape: tuple[int, int]) -> Codes:
        span, chosen = _native(self.scene, window, shape)
        pixels, valid = self.scene.read(span)
        values = pixels[0]
        known = valid & (values >= 0) & (values < len(self.codes))
        codes = self.codes[values] if known.all() else np.where(known, self.codes[np.where(known, values, 0)], 0).astype(np.uint8)
        return codes if chosen is None else codes[chosen]


@dataclass(frozen=True, slots=True)
class _Coloured:
    """Codes looked up from a picture in colours."""

    scene: Scene
    colours: Colours

    def read(self, window: Window, shape: tuple[int, int]) -> Codes:
        span, chosen = _native(self.scene, window, shape)
        codes = self.colours.decode(*self.scene.read(span), self.scene.path, (span.row, span.col))
        return codes if chosen is None else codes[chosen]


def _native(scene: Scene | Picture, window: Window, shape: tuple[int, int]) -> tuple[Window, Any]:
    """What to read for a window of a grid over the scene, and which of it is under the centres of the window's pixels; None for all."""
    if shape == scene.shape:
        return window, None
    ends = ((window.row, window.end_row), (window.col, window.end_col))
    rows, cols = (
        ((np.arange(first, last) + 0.5) * native / length).astype(np.intp)
        for (first, last), length, native in zip(ends, shape, scene.shape, strict=True)
    )
    span = Window.between(int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1)
    return span, np.ix_(rows - span.row, cols - span.col)


def _table(codes: Mapping[int, int]) -> Codes:
    table = np.zeros(max(codes, default=0) + 1, np.uint8)
    for value, code in codes.items():
        table[value] = code
    return table


def _checked(labels: R, image: LabelledScene) -> R:
    if labels.shape != image.shape:
        raise size_differs(labels.path, labels.shape, image.scene)
    return labels
