"""Training pairs cut from scenes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.utils.data import Dataset

from geoseg.card import Scaling
from geoseg.datasets import LabelledImage, LabelledSet
from geoseg.legend import Legend

Pixels: TypeAlias = npt.NDArray[np.uint8]
_PICKS = 512
"""Pixels remembered of each class of each frame."""
_RIM = 0.02
"""Pixels along the edge of a frame where the fixed-point arithmetic of the image library may read outside of it."""
_GREY = 0.4
"""The value, of 0..1, that a change of contrast leaves alone; about the mean of aerial imagery."""


class Source(BaseModel):
    """Which images of a set are used, and how often.

    Attributes:
        set: folder name below the data folder.
        keep: patterns of image names, at least one of which must match.
        drop: patterns of image names, none of which may match.
        weight: chance of a chip to come from here, relative to the other sources.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    set: str
    keep: tuple[str, ...] = ("*",)
    drop: tuple[str, ...] = ()
    weight: float = Field(default=1.0, gt=0)


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
        pixels: ``RGB`` picture.
        labels: ``L`` picture of codes.
        pixel_m: metres on the ground per pixel, of both.
        native_m: metres per pixel of the file.
        picks: for each code that allows one class, (P, 2) int32 x and y of some of its pixels.
    """

    pixels: Image.Image
    labels: Image.Image
    pixel_m: float
    native_m: float
    picks: Mapping[int, npt.NDArray[np.int32]]

    @classmethod
    def load(cls, image: LabelledImage, finest_m: float, codes: Sequence[int], rng: np.random.Generator) -> Frame:
        """Decode an image, and reduce it if its pixels are finer than ``finest_m``."""
        pixels, labels = resized(*image.read(), factor=min(1.0, image.gsd_m / finest_m))
        picks = _picks(np.asarray(labels), codes, rng)
        return cls(pixels, labels, max(image.gsd_m, finest_m), image.gsd_m, picks)


@dataclass(frozen=True, slots=True)
class Pool:
    """The frames of one source, and where its single classes are."""

    frames: tuple[Frame, ...]
    weight: float
    areas: npt.NDArray[np.float64]
    holders: Mapping[int, npt.NDArray[np.intp]]

    @classmethod
    def load(cls, root: Path, source: Source, legend: Legend, finest_m: float, rng: np.random.Generator) -> Pool:
        """Decode all training images of a source."""
        labelled = LabelledSet.read(root / source.set, legend)
        codes = np.flatnonzero(labelled.allowed.sum(1) == 1).tolist()
        frames = tuple(Frame.load(image, finest_m, codes, rng) for image in labelled.select("train", source.keep, source.drop))
        areas = np.array([frame.pixels.width * frame.pixels.height * frame.pixel_m**2 for frame in frames])
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
        pixels, labels, inside = cut(frame, centre, step, turn, self.options.size)
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
) -> tuple[Pixels, Pixels, npt.NDArray[np.bool_]]:
    """Sample one chip through one affine map, the same for pixels (bilinear) and labels (nearest).

    Args:
        frame: to cut from.
        centre: x and y of the chip's centre in the frame, pixels.
        step: frame pixels per chip pixel.
        turn: (2, 2) rotation, possibly mirrored.
        size: height and width of the chip.

    Returns:
        pixels (3, size, size) uint8; labels (size, size) uint8, 0 outside the frame; inside (size, size) bool.
    """
    (a, b), (d, e) = turn * step
    c, f = centre[0] - (a + b) * size / 2, centre[1] - (d + e) * size / 2
    affine = (a, b, c, d, e, f)
    pixels = frame.pixels.transform((size, size), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    labels = frame.labels.transform((size, size), Image.Transform.AFFINE, affine, Image.Resampling.NEAREST)
    at = np.arange(size) + 0.5
    x, y = a * at[None, :] + b * at[:, None] + c, d * at[None, :] + e * at[:, None] + f
    inside = (x > _RIM) & (x < frame.pixels.width - _RIM) & (y > _RIM) & (y < frame.pixels.height - _RIM)
    return np.asarray(pixels).transpose(2, 0, 1), np.where(inside, np.asarray(labels), 0).astype(np.uint8), inside


def vary(pixels: Pixels, scaling: Scaling, options: ChipOptions, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Change the colours of a chip at random.

    Args:
        pixels: (B, H, W) uint8.
        scaling: of the model card.
        options: how much.
        rng: source of chance.

    Returns:
        (B, H, W) float32, 0..1.
    """
    gain = np.exp(rng.uniform(-options.colour, options.colour, len(pixels)) + rng.uniform(-options.brightness, options.brightness))
    gamma, contrast, saturation = (np.exp(rng.uniform(-j, j)) for j in (options.gamma, options.contrast, options.saturation))
    ramp = ranged(np.arange(256), scaling)[None] ** gamma * gain[:, None]
    table = np.clip((ramp - _GREY) * contrast + _GREY, 0, 1).astype(np.float32)
    values = np.stack([row[band] for row, band in zip(table, pixels, strict=True)])
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


def _place(pool: Pool, options: ChipOptions, resolution_m: float, rng: np.random.Generator) -> tuple[Frame, tuple[float, float]]:
    """Choose a frame and the centre of a chip: on a class drawn evenly, or anywhere."""
    if pool.holders and rng.random() < options.rare:
        code = rng.choice(sorted(pool.holders))
        frame = pool.frames[rng.choice(pool.holders[int(code)])]
        spot = rng.choice(frame.picks[int(code)]) + 0.5
        centre = spot + rng.uniform(-0.35, 0.35, 2) * options.size * resolution_m / frame.pixel_m
    else:
        frame = pool.frames[rng.choice(len(pool.frames), p=pool.areas)]
        centre = rng.uniform(0, 1, 2) * (frame.pixels.width, frame.pixels.height)
    half = options.size * resolution_m / frame.pixel_m / 2
    x, y = (_clamped(at, half, length) for at, length in zip(centre, frame.pixels.size, strict=True))
    return frame, (x, y)


def _clamped(at: float, half: float, length: int) -> float:
    """Where a chip of this half width lies inside the frame, or its middle if it is too small."""
    return length / 2 if length < 2 * half else min(max(float(at), half), length - half)


def _step(frame: Frame, options: ChipOptions, resolution_m: float, rng: np.random.Generator) -> float:
    """Frame pixels per chip pixel."""
    pixel_m = resolution_m * math.exp(rng.uniform(math.log(options.scale[0]), math.log(options.scale[1])))
    return max(pixel_m, frame.native_m / options.upsampling) / frame.pixel_m


def _turn(options: ChipOptions, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    angle = rng.uniform(0, 2 * math.pi) if rng.random() < options.rotate else rng.integers(4) * math.pi / 2
    cosine, sine, mirror = math.cos(angle), math.sin(angle), float(rng.choice([-1, 1]))
    return np.array([[cosine, -sine * mirror], [sine, cosine * mirror]])
