"""Images and scenes with labels, ready to cut chips from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from geoseg.card import Scaling
from geoseg.chips.options import Source
from geoseg.datasets import LabelledImage, LabelledScene, LabelledSet
from geoseg.window import Window

Codes = npt.NDArray[np.uint8]
_PICKS = 512
"""Pixels remembered of each class of each frame."""
_RIM = 0.02
"""Pixels along the edge of a frame where the fixed-point arithmetic of the image library may read outside of it."""
_ROWS = 256


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded image, ready to cut chips from.

    Attributes:
        pixels: pictures whose bands, one after the other, are the image's: one ``RGB``, or one ``L`` or ``F`` a band.
        labels: ``L`` picture of codes.
        pixel_m: metres on the ground per pixel, of both.
        native_m: metres per pixel of the file.
        picks: for each code that allows one class, (P, 2) int32 x and y of some of its pixels.
        valid: ``L`` picture, 255 where there is data and 0 elsewhere; None if there is data everywhere.
    """

    pixels: tuple[Image.Image, ...]
    labels: Image.Image
    pixel_m: float
    native_m: float
    picks: Mapping[int, npt.NDArray[np.int32]]
    valid: Image.Image | None = None

    @property
    def size(self) -> tuple[int, int]:
        """``(width, height)`` in pixels."""
        return self.labels.size

    @classmethod
    def load(cls, image: LabelledImage, finest_m: float, codes: Sequence[int], rng: np.random.Generator) -> Frame:
        """Decode an image, and reduce it if its pixels are finer than ``finest_m``."""
        pixels, labels = resized(*image.read(), factor=min(1.0, image.gsd_m / finest_m))
        picks = _picks(np.asarray(labels), codes, rng)
        return cls((pixels,), labels, max(image.gsd_m, finest_m), image.gsd_m, picks)

    def around(self, centre: tuple[float, float], reach: float) -> tuple[Frame, tuple[float, float]]:  # noqa: ARG002
        """The frame and the centre in it; see `SceneFrame.around`."""
        return self, centre


@dataclass(frozen=True, slots=True)
class SceneFrame:
    """A scene of any size, from which windows are read.

    Attributes:
        image: the scene and its labels.
        shape: height and width of the grid that is read, no finer than needed.
        pixel_m: metres on the ground per pixel of that grid.
        native_m: metres per pixel of the file.
        picks: as of a `Frame`, on that grid.
        low: (B,) pixel value that becomes the card's low one; the same for ``high``.
        high: (B,).
        scaling: of the card.
    """

    image: LabelledScene
    shape: tuple[int, int]
    pixel_m: float
    native_m: float
    picks: Mapping[int, npt.NDArray[np.int32]]
    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]
    scaling: Scaling

    @property
    def size(self) -> tuple[int, int]:
        """``(width, height)`` in pixels."""
        return self.shape[1], self.shape[0]

    @classmethod
    def load(cls, image: LabelledScene, finest_m: float, codes: Sequence[int], scaling: Scaling, rng: np.random.Generator) -> SceneFrame:
        """Look at the scene, and look through its labels once."""
        pixel_m = max(image.gsd_m, finest_m)
        shape = image.reduced(pixel_m)
        low, high = native_range(image, scaling)
        return cls(image, shape, pixel_m, image.gsd_m, _picks_of(image, shape, codes, rng), low, high, scaling)

    def around(self, centre: tuple[float, float], reach: float) -> tuple[Frame, tuple[float, float]]:
        """Decode what lies less than ``reach`` pixels from the centre, in x and in y.

        Returns:
            The frame of that window, and the centre in it.

        Raises:
            ReadError: if a block of the file cannot be decoded.
        """
        (x, y), (height, width) = centre, self.shape
        left, top = max(0, math.floor(x - reach)), max(0, math.floor(y - reach))
        window = Window.between(top, left, min(height, math.ceil(y + reach)), min(width, math.ceil(x + reach)))
        pixels, valid, labels = self.image.read(window, self.shape)
        known = None
        if not valid.all():
            pixels, known = np.where(valid, pixels, 0), Image.fromarray(np.where(valid, 255, 0).astype(np.uint8))
        pixels = in_units(pixels, self.low, self.high, self.scaling)
        return Frame(_pictures(pixels), Image.fromarray(labels), self.pixel_m, self.native_m, {}, known), (x - left, y - top)


@dataclass(frozen=True, slots=True)
class Pool:
    """The frames of one source, and where its single classes are."""

    frames: tuple[Frame | SceneFrame, ...]
    weight: float
    areas: npt.NDArray[np.float64]
    holders: Mapping[int, npt.NDArray[np.intp]]

    @classmethod
    def load(cls, labelled: LabelledSet, source: Source, finest_m: float, scaling: Scaling, rng: np.random.Generator) -> Pool:
        """Decode all images of a source, or look at its scenes."""
        codes = np.flatnonzero(labelled.allowed.sum(1) == 1).tolist()
        frames = tuple(
            Frame.load(image, finest_m, codes, rng)
            if isinstance(image, LabelledImage)
            else SceneFrame.load(image, finest_m, codes, scaling, rng)
            for image in labelled.select(source.part, source.keep, source.drop)
        )
        areas = np.array([math.prod(frame.size) * frame.pixel_m**2 for frame in frames])
        holders = {code: np.flatnonzero([code in frame.picks for frame in frames]) for code in codes}
        return cls(frames, source.weight, areas / areas.sum(), {code: found for code, found in holders.items() if found.size})


def resized(pixels: Image.Image, labels: Image.Image, factor: float) -> tuple[Image.Image, Image.Image]:
    """Both pictures on a grid ``factor`` times as fine: pixels averaged or cubic, labels nearest."""
    if factor == 1:
        return pixels, labels
    size = max(1, round(pixels.width * factor)), max(1, round(pixels.height * factor))
    kernel = Image.Resampling.BOX if factor < 1 else Image.Resampling.BICUBIC
    return pixels.resize(size, kernel), labels.resize(size, Image.Resampling.NEAREST)


def cut(
    frame: Frame,
    centre: tuple[float, float],
    step: float,
    turn: npt.NDArray[np.float64],
    size: int,
    bend: npt.NDArray[np.float64] | None = None,
) -> tuple[npt.NDArray[Any], Codes, npt.NDArray[np.bool_]]:
    """Sample one chip through one map, the same for pixels (bilinear) and labels (nearest).

    Args:
        frame: to cut from.
        centre: x and y of the chip's centre in the frame, pixels.
        step: frame pixels per chip pixel.
        turn: (2, 2) rotation, possibly mirrored.
        size: height and width of the chip.
        bend: (2, n, n) shift in x and y, chip pixels, of even places from the first to the last corner of the chip, bilinear between
            them; None for an affine map.

    Returns:
        pixels (B, size, size) uint8 or float32; labels (size, size) uint8, 0 outside the frame; inside (size, size) bool, False
        where the frame has no data, too.
    """
    (a, b), (d, e) = turn * step
    c, f = centre[0] - (a + b) * size / 2, centre[1] - (d + e) * size / 2
    at = np.arange(size) + 0.5
    x, y = a * at[None, :] + b * at[:, None] + c, d * at[None, :] + e * at[:, None] + f
    how: tuple[Any, Any] = (Image.Transform.AFFINE, (a, b, c, d, e, f))
    if bend is not None:
        edges = np.linspace(0, size, bend.shape[1]).round().astype(int)
        shifts = np.einsum("ij,jkl->ikl", turn * step, bend)
        corners = np.stack([a * edges[None, :] + b * edges[:, None] + c, d * edges[None, :] + e * edges[:, None] + f]) + shifts
        how = (Image.Transform.MESH, _mesh(edges, corners))
        share = np.array([np.interp(at, edges, row) for row in np.eye(len(edges))])
        more_x, more_y = share.T @ shifts @ share
        x, y = x + more_x, y + more_y
    bands = [picture.transform((size, size), *how, Image.Resampling.BILINEAR) for picture in frame.pixels]
    labels = frame.labels.transform((size, size), *how, Image.Resampling.NEAREST)
    inside = (x > _RIM) & (x < frame.size[0] - _RIM) & (y > _RIM) & (y < frame.size[1] - _RIM)
    if frame.valid is not None:
        known = frame.valid.transform((size, size), *how, Image.Resampling.BILINEAR)
        inside &= np.asarray(known) == 255
    pixels = np.concatenate([np.atleast_3d(np.asarray(band)).transpose(2, 0, 1) for band in bands])
    return pixels, np.where(inside, np.asarray(labels), 0).astype(np.uint8), inside


def _mesh(edges: npt.NDArray[np.int_], corners: npt.NDArray[np.float64]) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Boxes of the chip between the edges, and where the frame has their corners (2, n, n): upper and lower left, lower and upper right."""
    mesh: list[tuple[tuple[int, ...], tuple[float, ...]]] = []
    for row, (top, bottom) in enumerate(pairwise(edges.tolist())):
        for col, (left, right) in enumerate(pairwise(edges.tolist())):
            spots = [corners[:, row, col], corners[:, row + 1, col], corners[:, row + 1, col + 1], corners[:, row, col + 1]]
            mesh.append(((left, top, right, bottom), tuple(np.concatenate(spots).tolist())))
    return mesh


def native_range(image: LabelledScene, scaling: Scaling) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The pixel values of each band (B,) that stand for the card's ``low`` and ``high``.

    As in prediction: where a file is not of the card's type, they are percentiles of its own pixels.

    Raises:
        ReadError: if a block of the file cannot be decoded.
    """
    ranges: list[tuple[float, float]] = []
    for part in image.parts:
        if part.dtype == scaling.dtype:
            ranges += [(scaling.low, scaling.high)] * len(part.bands)
        else:
            stretch = part.stretch(scaling.percentiles)
            ranges += zip(stretch.low, stretch.high, strict=True)
    low, high = np.array(ranges, np.float32).T
    return low, high


def in_units(pixels: npt.NDArray[Any], low: npt.NDArray[np.float32], high: npt.NDArray[np.float32], scaling: Scaling) -> npt.NDArray[Any]:
    """Pixels (B, H, W) whose ``low`` and ``high`` (B,) are the card's: as they are if they are that already, else float32."""
    if (low == scaling.low).all() and (high == scaling.high).all():
        return pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)
    share = (pixels.astype(np.float32) - low[:, None, None]) / (high - low)[:, None, None]
    return np.asarray(scaling.low + share * (scaling.high - scaling.low), np.float32)


def _picks(labels: Codes, codes: Sequence[int], rng: np.random.Generator) -> dict[int, npt.NDArray[np.int32]]:
    picks = {}
    for code in codes:
        found = np.flatnonzero(labels == code)
        if found.size:
            rows, cols = np.divmod(rng.choice(found, min(_PICKS, found.size), replace=False), labels.shape[1])
            picks[code] = np.stack([cols, rows], 1).astype(np.int32)
    return picks


def _picks_of(
    image: LabelledScene, shape: tuple[int, int], codes: Sequence[int], rng: np.random.Generator
) -> dict[int, npt.NDArray[np.int32]]:
    """As ``_picks``, of labels that are read row by row: every pixel draws a number, the lowest of each code stay."""
    kept = {code: (np.empty(0), np.empty((0, 2), np.int32)) for code in codes}
    for window in Window.of(shape).split(_ROWS, shape[1]):
        labels = image.codes(window, shape)
        for code in codes:
            found = np.flatnonzero(labels == code)
            drawn, (before, spots) = rng.random(found.size), kept[code]
            low = drawn < (before[-1] if len(before) == _PICKS else 1)
            rows, cols = np.divmod(found[low], window.width)
            drawn = np.concatenate([before, drawn[low]])
            spots = np.concatenate([spots, np.stack([cols + window.col, rows + window.row], 1).astype(np.int32)])
            lowest = np.argsort(drawn)[:_PICKS]
            kept[code] = drawn[lowest], spots[lowest]
    return {code: spots for code, (_, spots) in kept.items() if len(spots)}


def _pictures(pixels: npt.NDArray[Any]) -> tuple[Image.Image, ...]:
    """Pictures of the bands (B, H, W) uint8 or float32."""
    if pixels.dtype == np.uint8 and len(pixels) == 3:
        return (Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))),)
    return tuple(Image.fromarray(np.ascontiguousarray(band)) for band in pixels)
