"""Training pairs cut from scenes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.utils.data import Dataset

from geoseg.card import Scaling
from geoseg.datasets import LabelledImage, LabelledScene, LabelledSet, Layout, read_set
from geoseg.legend import Legend
from geoseg.window import Window

Pixels: TypeAlias = npt.NDArray[np.uint8]
_PICKS = 512
"""Pixels remembered of each class of each frame."""
_RIM = 0.02
"""Pixels along the edge of a frame where the fixed-point arithmetic of the image library may read outside of it."""
_MARGIN = 2
"""Pixels around a chip that are read too, so that the interpolation at its edge is the same as in the whole image."""
_ROWS = 256
_GREY = 0.4
"""The value, of 0..1, that a change of contrast leaves alone; about the mean of aerial imagery."""


class Source(BaseModel):
    """Which images of a set are used, and how often.

    Attributes:
        set: folder below the data folder.
        layout: of the folder: ``set`` (images, labels and a ``set.yaml``), ``scenes`` (a ``scenes.yaml``), ``potsdam``, ``vaihingen``
            or ``spacenet``.
        eroded: for the ISPRS layouts, whether pixels at boundaries are unlabelled.
        touched: for SpaceNet, whether all pixels that a footprint touches are building.
        part: of the set.
        keep: patterns of image names, at least one of which must match.
        drop: patterns of image names, none of which may match.
        weight: chance of a chip to come from here, relative to the other sources.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    set: str
    layout: Layout = "set"
    eroded: bool = False
    touched: bool = False
    part: str = "train"
    keep: tuple[str, ...] = ("*",)
    drop: tuple[str, ...] = ()
    weight: float = Field(default=1.0, gt=0)

    @property
    def data(self) -> tuple[str, Layout, bool, bool]:
        """What of the source decides the labelled set, apart from the choice of images in it."""
        return self.set, self.layout, self.eroded, self.touched

    def read(self, root: Path, legend: Legend, bands: tuple[str, ...]) -> LabelledSet:
        """Find the images and labels.

        Raises:
            OptionsError: if the folder is not what the layout says.
            BandsError: if its images do not have the bands.
        """
        return read_set(root / self.set, self.layout, legend, bands, eroded=self.eroded, touched=self.touched)


class ChipOptions(BaseModel):
    """How chips are cut and varied; each ``jitter`` is the largest change, 0 for none.

    Attributes:
        size: height and width in pixels.
        batch: chips a batch.
        scale: smallest and largest pixel of a chip, relative to the card's resolution.
        upsampling: a source pixel becomes at most this many chip pixels a side.
        rare: share of chips centred on a pixel of a class drawn evenly, instead of anywhere.
        rotate: share of chips turned by any angle; the others by quarter turns.
        brightness: jitter of the logarithm of the gain, all bands alike.
        colour: jitter of the logarithm of the gain of each band.
        gamma: jitter of the logarithm of the exponent.
        contrast: jitter of the logarithm of the contrast.
        saturation: jitter of the logarithm of the saturation.
        noise: largest standard deviation of noise, of values in 0..1.
        blur: share of chips that are blurred.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=32)
    batch: int = Field(ge=1)
    scale: tuple[float, float]
    upsampling: float = Field(default=2.0, ge=1)
    rare: float = Field(default=0.5, ge=0, le=1)
    rotate: float = Field(default=0.5, ge=0, le=1)
    brightness: float = Field(default=0.0, ge=0)
    colour: float = Field(default=0.0, ge=0)
    gamma: float = Field(default=0.0, ge=0)
    contrast: float = Field(default=0.0, ge=0)
    saturation: float = Field(default=0.0, ge=0)
    noise: float = Field(default=0.0, ge=0)
    blur: float = Field(default=0.0, ge=0, le=1)


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


class Chips(Dataset[tuple[Tensor, Tensor]]):
    """Batches of chips. Batch ``i`` depends on the seed and ``i`` alone, so that a run can stop and go on.

    Args:
        pools: sources in memory.
        options: how chips are cut.
        scaling: of the model card; the same arithmetic as in prediction.
        resolution_m: of the model card.
        seed: of all chance.
        first: number of the first batch.
        count: number of batches.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        options: ChipOptions,
        scaling: Scaling,
        resolution_m: float,
        *,
        seed: int,
        first: int = 0,
        count: int = 1,
    ) -> None:
        self.pools, self.options, self.scaling, self.resolution_m = pools, options, scaling, resolution_m
        self.seed, self.first, self.count = seed, first, count
        weights = np.array([pool.weight for pool in pools])
        self.chances = weights / weights.sum()

    def __len__(self) -> int:
        """Number of batches."""
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Scaled pixels (N, B, H, W) float32 and label codes (N, H, W) uint8 of one batch.

        Raises:
            IndexError: past the last batch.
        """
        if not 0 <= index < self.count:
            raise IndexError(index)
        rng = np.random.default_rng((self.seed, self.first + index))
        pairs = [self._chip(rng) for _ in range(self.options.batch)]
        return torch.from_numpy(np.stack([pixels for pixels, _ in pairs])), torch.from_numpy(np.stack([labels for _, labels in pairs]))

    def _chip(self, rng: np.random.Generator) -> tuple[npt.NDArray[np.float32], Pixels]:
        pool = self.pools[rng.choice(len(self.pools), p=self.chances)]
        frame, centre = _place(pool, self.options, self.resolution_m, rng)
        step, turn = _step(frame, self.options, self.resolution_m, rng), _turn(self.options, rng)
        reach = np.abs(turn).sum(1).max() * step * self.options.size / 2 + _MARGIN
        pixels, labels, inside = cut(*frame.around(centre, reach), step, turn, self.options.size)
        return standardised(vary(pixels, self.scaling, self.options, rng), self.scaling) * inside, labels


def resized(pixels: Image.Image, labels: Image.Image, factor: float) -> tuple[Image.Image, Image.Image]:
    """Both pictures on a grid ``factor`` times as fine: pixels averaged or cubic, labels nearest."""
    if factor == 1:
        return pixels, labels
    size = max(1, round(pixels.width * factor)), max(1, round(pixels.height * factor))
    kernel = Image.Resampling.BOX if factor < 1 else Image.Resampling.BICUBIC
    return pixels.resize(size, kernel), labels.resize(size, Image.Resampling.NEAREST)


def ranged(pixels: npt.NDArray[np.generic], scaling: Scaling) -> npt.NDArray[np.float32]:
    """Native pixels of any shape to 0..1, as the card says."""
    values = (pixels.astype(np.float32) - np.float32(scaling.low)) / np.float32(scaling.high - scaling.low)
    return values.clip(0, 1)


def standardised(values: npt.NDArray[np.float32], scaling: Scaling) -> npt.NDArray[np.float32]:
    """What the network sees of values 0..1 (B, H, W): mean and deviation of the card."""
    mean, std = (np.array(figures, np.float32)[:, None, None] for figures in (scaling.mean, scaling.std))
    return (values - mean) / std


def cut(
    frame: Frame, centre: tuple[float, float], step: float, turn: npt.NDArray[np.float64], size: int
) -> tuple[npt.NDArray[Any], Pixels, npt.NDArray[np.bool_]]:
    """Sample one chip through one affine map, the same for pixels (bilinear) and labels (nearest).

    Args:
        frame: to cut from.
        centre: x and y of the chip's centre in the frame, pixels.
        step: frame pixels per chip pixel.
        turn: (2, 2) rotation, possibly mirrored.
        size: height and width of the chip.

    Returns:
        pixels (B, size, size) uint8 or float32; labels (size, size) uint8, 0 outside the frame; inside (size, size) bool, False
        where the frame has no data, too.
    """
    (a, b), (d, e) = turn * step
    c, f = centre[0] - (a + b) * size / 2, centre[1] - (d + e) * size / 2
    affine = (a, b, c, d, e, f)
    bands = [picture.transform((size, size), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR) for picture in frame.pixels]
    labels = frame.labels.transform((size, size), Image.Transform.AFFINE, affine, Image.Resampling.NEAREST)
    at = np.arange(size) + 0.5
    x, y = a * at[None, :] + b * at[:, None] + c, d * at[None, :] + e * at[:, None] + f
    inside = (x > _RIM) & (x < frame.size[0] - _RIM) & (y > _RIM) & (y < frame.size[1] - _RIM)
    if frame.valid is not None:
        known = frame.valid.transform((size, size), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
        inside &= np.asarray(known) == 255
    pixels = np.concatenate([np.atleast_3d(np.asarray(band)).transpose(2, 0, 1) for band in bands])
    return pixels, np.where(inside, np.asarray(labels), 0).astype(np.uint8), inside


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


def vary(pixels: npt.NDArray[Any], scaling: Scaling, options: ChipOptions, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Change the colours of a chip at random.

    Args:
        pixels: (B, H, W) uint8 or float32.
        scaling: of the model card.
        options: how much.
        rng: source of chance.

    Returns:
        (B, H, W) float32, 0..1.
    """
    gain = np.exp(rng.uniform(-options.colour, options.colour, len(pixels)) + rng.uniform(-options.brightness, options.brightness))
    gamma, contrast, saturation = (np.exp(rng.uniform(-j, j)) for j in (options.gamma, options.contrast, options.saturation))
    few = pixels.dtype == np.uint8
    ramp = ranged(np.arange(256)[None] if few else pixels.reshape(len(pixels), -1), scaling) ** gamma * gain[:, None]
    table = np.clip((ramp - _GREY) * contrast + _GREY, 0, 1).astype(np.float32)
    values = np.stack([row[band] for row, band in zip(table, pixels, strict=True)]) if few else table.reshape(pixels.shape)
    grey = values.mean(0, keepdims=True)
    values = grey + (values - grey) * np.float32(saturation)
    if rng.random() < options.blur:
        values = _blurred(values)
    if options.noise:
        values = values + rng.standard_normal(values.shape, np.float32) * np.float32(rng.uniform(0, options.noise))
    return np.clip(values, 0, 1).astype(np.float32)


def _blurred(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Binomial 3 x 3 mean of (B, H, W); the rim repeats."""
    rows = np.pad(values, [(0, 0), (1, 1), (0, 0)], mode="edge")
    values = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) * np.float32(0.25)
    cols = np.pad(values, [(0, 0), (0, 0), (1, 1)], mode="edge")
    return (cols[:, :, :-2] + 2 * cols[:, :, 1:-1] + cols[:, :, 2:]) * np.float32(0.25)


def _picks(labels: Pixels, codes: Sequence[int], rng: np.random.Generator) -> dict[int, npt.NDArray[np.int32]]:
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


def _place(
    pool: Pool, options: ChipOptions, resolution_m: float, rng: np.random.Generator
) -> tuple[Frame | SceneFrame, tuple[float, float]]:
    """Choose a frame and the centre of a chip: on a class drawn evenly, or anywhere."""
    if pool.holders and rng.random() < options.rare:
        code = rng.choice(sorted(pool.holders))
        frame = pool.frames[rng.choice(pool.holders[int(code)])]
        spot = rng.choice(frame.picks[int(code)]) + 0.5
        centre = spot + rng.uniform(-0.35, 0.35, 2) * options.size * resolution_m / frame.pixel_m
    else:
        frame = pool.frames[rng.choice(len(pool.frames), p=pool.areas)]
        centre = rng.uniform(0, 1, 2) * frame.size
    half = options.size * resolution_m / frame.pixel_m / 2
    x, y = (_clamped(at, half, length) for at, length in zip(centre, frame.size, strict=True))
    return frame, (x, y)


def _clamped(at: float, half: float, length: int) -> float:
    """Where a chip of this half width lies inside the frame, or its middle if it is too small."""
    return length / 2 if length < 2 * half else min(max(float(at), half), length - half)


def _step(frame: Frame | SceneFrame, options: ChipOptions, resolution_m: float, rng: np.random.Generator) -> float:
    """Frame pixels per chip pixel."""
    pixel_m = resolution_m * math.exp(rng.uniform(math.log(options.scale[0]), math.log(options.scale[1])))
    return max(pixel_m, frame.native_m / options.upsampling) / frame.pixel_m


def _turn(options: ChipOptions, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    angle = rng.uniform(0, 2 * math.pi) if rng.random() < options.rotate else rng.integers(4) * math.pi / 2
    cosine, sine, mirror = math.cos(angle), math.sin(angle), float(rng.choice([-1, 1]))
    return np.array([[cosine, -sine * mirror], [sine, cosine * mirror]])
