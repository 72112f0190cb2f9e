"""What is true of each pixel, read as label codes from rasters of classes or colours, or from polygons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from geoseg.classes import ClassRaster
from geoseg.errors import OptionsError
from geoseg.legend import Legend
from geoseg.scene import Scene
from geoseg.window import Window

CODES = 256
"""Number of label codes."""

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
    def path(self) -> str:
        """Of the file."""
        return self.raster.scene.path

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
                yield self._decoded(window, *reader.read(window))

    def _decoded(self, window: Window, pixels: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        colours = packed(pixels)
        known = packed(np.array([(0, 0, 0), *(c.rgb for c in self.legend.classes)], np.uint8).T)
        order = np.argsort(known, kind="stable")
        place = np.minimum(np.searchsorted(known, colours, sorter=order), len(known) - 1)
        codes = order[place].astype(np.uint8)
        strange = valid & (known[codes] != colours)
        if strange.any():
            row, col = (int(n) for n in np.argwhere(strange)[0])
            colour = tuple(pixels[:, row, col].tolist())
            titles = ", ".join(f"{c.rgb} {c.title}" for c in self.legend.classes)
            raise OptionsError(
                f"{self.path}: pixel row {window.row + row}, column {window.col + col} has the colour {colour}; "
                f"legend {self.legend.name!r} has {titles} and black (0, 0, 0) for no label; mend the file, or give its --legend"
            )
        codes[~valid] = NOTHING
        return codes


def packed(pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Colours (3, ...) as single numbers."""
    red, green, blue = pixels.astype(np.uint32)
    return red << 16 | green << 8 | blue
