"""Pixels to what a network sees, and random changes of their colours."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from geoseg.card import Scaling
from geoseg.chips.options import ChipOptions

_GREY = 0.4
"""The value, of 0..1, that a change of contrast leaves alone; about the mean of aerial imagery."""
_QUALITY = (20, 90)


def ranged(pixels: npt.NDArray[np.generic], scaling: Scaling) -> npt.NDArray[np.float32]:
    """Native pixels of any shape to 0..1, as the card says."""
    values = (pixels.astype(np.float32) - np.float32(scaling.low)) / np.float32(scaling.high - scaling.low)
    return values.clip(0, 1)


def standardised(values: npt.NDArray[np.float32], scaling: Scaling) -> npt.NDArray[np.float32]:
    """What the network sees of values 0..1 (B, H, W): mean and deviation of the card."""
    mean, std = (np.array(figures, np.float32)[:, None, None] for figures in (scaling.mean, scaling.std))
    return (values - mean) / std


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
    if options.hue and len(values) >= 3:
        values = np.concatenate([_turned(values[:3], rng.uniform(-options.hue, options.hue)), values[3:]])
    if rng.random() < options.blur:
        values = _blurred(values)
    if options.noise:
        values = values + rng.standard_normal(values.shape, np.float32) * np.float32(rng.uniform(0, options.noise))
    values = np.clip(values, 0, 1).astype(np.float32)
    if options.jpeg and rng.random() < options.jpeg:
        values = _compressed(values, int(rng.integers(*_QUALITY, endpoint=True)))
    return values


def _turned(values: npt.NDArray[np.float32], turns: float) -> npt.NDArray[np.float32]:
    """Three bands (3, H, W) turned around grey: the mean of a pixel and how colourful it is stay."""
    cosine, sine = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns) / math.sqrt(3)
    around = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    turn = cosine * np.eye(3) + sine * around + (1 - cosine) / 3
    turned: npt.NDArray[np.float32] = np.einsum("ij,jkl->ikl", turn.astype(np.float32), values)
    return turned


def _compressed(values: npt.NDArray[np.float32], quality: int) -> npt.NDArray[np.float32]:
    """Values (B, H, W) in 0..1 that were a JPEG: of three bands as a picture in colours, of others each in grey."""
    pixels = (values * 255 + 0.5).astype(np.uint8)
    pictures = [pixels.transpose(1, 2, 0)] if len(pixels) == 3 else list(pixels)
    bands = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(picture)).save(file, "JPEG", quality=quality)
        bands.append(np.atleast_3d(np.asarray(Image.open(file))).transpose(2, 0, 1))
    return np.concatenate(bands).astype(np.float32) / np.float32(255)


def _blurred(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Binomial 3 x 3 mean of (B, H, W); the rim repeats."""
    rows = np.pad(values, [(0, 0), (1, 1), (0, 0)], mode="edge")
    values = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) * np.float32(0.25)
    cols = np.pad(values, [(0, 0), (0, 0), (1, 1)], mode="edge")
    return (cols[:, :, :-2] + 2 * cols[:, :, 1:-1] + cols[:, :, 2:]) * np.float32(0.25)
