"""Pictures without a place on Earth, decoded whole and read like scenes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from geoseg.errors import ReadError
from geoseg.scene import Stretch
from geoseg.window import Window

Values = npt.NDArray[np.uint8]
_KEPT = 40


@dataclass(frozen=True, slots=True)
class Picture:
    """A JPEG, PNG or BMP on the grid ``shape``; the last ones used stay decoded.

    Attributes:
        path: of the file.
        native: height and width of its own pixels.
        shape: height and width of the grid that is read.
        bands: numbers of the bands that are read, from 1: of red, green and blue, or 1 of a grey picture.
        dtype: of the pixels.
    """

    path: Path
    native: tuple[int, int]
    shape: tuple[int, int]
    bands: tuple[int, ...] = (1,)
    dtype: str = "uint8"

    @classmethod
    def describe(cls, path: Path, bands: tuple[int, ...]) -> Picture:
        """Look at the file's head.

        Raises:
            ReadError: if it is no picture.
        """
        try:
            with Image.open(path) as file:
                shape = file.height, file.width
        except (OSError, UnidentifiedImageError) as error:
            raise _not_decoded(path, error) from error
        return cls(path, shape, shape, bands)

    @property
    def pixel_m(self) -> None:
        """Metres on the ground per pixel: a picture does not say it."""

    def stretch(self, percentiles: tuple[float, float]) -> Stretch:
        """The range between two percentiles, per band."""
        low, high = np.percentile(self._decoded(self.native), percentiles, axis=(1, 2))
        return Stretch(tuple(low.tolist()), tuple(np.maximum(high, low + 1).tolist()))

    def resampled(self, shape: tuple[int, int]) -> Picture:
        """The same ground on another grid."""
        return Picture(self.path, self.native, shape, self.bands)

    def read(self, window: Window) -> tuple[Values, npt.NDArray[np.bool_]]:
        """Pixels (B, h, w) and where they are in the picture (h, w) bool; 0 elsewhere.

        Raises:
            ReadError: if the file cannot be decoded, or is not as large as its scene.
        """
        pixels, valid = np.zeros((len(self.bands), *window.shape), np.uint8), np.zeros(window.shape, bool)
        inside = window & Window.of(self.shape)
        if inside is not None:
            there = inside.within(window)
            pixels[:, *there] = self._decoded(self.shape)[:, *inside.within(Window.of(self.shape))]
            valid[there] = True
        return pixels, valid

    def _decoded(self, shape: tuple[int, int]) -> Values:
        pixels = _decoded(self.path, self.native, shape, "L" if self.bands == (1,) else "RGB")
        return pixels if self.bands == (1,) else pixels[[band - 1 for band in self.bands]]


@lru_cache(maxsize=_KEPT)
def _decoded(path: Path, native: tuple[int, int], shape: tuple[int, int], mode: str) -> Values:
    """A picture (B, H, W); one row or column that it lacks (Potsdam's heights of 3_13 are 5999 pixels wide) repeats the last."""
    try:
        with Image.open(path) as file:
            pixels = np.atleast_3d(np.asarray(file if mode == "L" and file.mode == "P" else file.convert(mode)))
    except (OSError, UnidentifiedImageError) as error:
        raise _not_decoded(path, error) from error
    lacking = [wanted - found for wanted, found in zip(native, pixels.shape[:2], strict=True)]
    if not all(0 <= rows <= 1 for rows in lacking):
        raise ReadError(f"{path}: is {pixels.shape[0]} x {pixels.shape[1]} pixels, but its image {native[0]} x {native[1]}; expected equal")
    pixels = np.pad(pixels, [*((0, rows) for rows in lacking), (0, 0)], mode="edge")
    if shape != native:
        kernel = Image.Resampling.BOX if shape[0] < native[0] else Image.Resampling.BICUBIC
        pixels = np.atleast_3d(np.asarray(Image.fromarray(pixels.squeeze()).resize(shape[::-1], kernel)))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _not_decoded(path: Path, error: Exception) -> ReadError:
    return ReadError(f"{path}: cannot be decoded ({error}); expected an 8-bit picture")
