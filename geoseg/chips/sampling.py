"""Batches of chips, sampled at random."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset

from geoseg.card import Scaling
from geoseg.chips.frames import Frame, Pool, SceneFrame, cut
from geoseg.chips.options import ChipOptions
from geoseg.chips.variation import standardised, vary

_MARGIN = 2
"""Pixels around a chip that are read too, so that the interpolation at its edge is the same as in the whole image."""
_FEW, _MANY = 4, 9
"""Places along a side whose elastic shifts are random, and between which they are bilinear."""


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

    def _chip(self, rng: np.random.Generator) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        pool = self.pools[rng.choice(len(self.pools), p=self.chances)]
        frame, centre = _place(pool, self.options, self.resolution_m, rng)
        step, turn = _step(frame, self.options, self.resolution_m, rng), _turn(self.options, rng)
        bend = _bend(self.options.elastic, rng) if self.options.elastic else None
        reach = np.abs(turn).sum(1).max() * step * (self.options.size / 2 + self.options.elastic) + _MARGIN
        pixels, labels, inside = cut(*frame.around(centre, reach), step, turn, self.options.size, bend)
        return standardised(vary(pixels, self.scaling, self.options, rng), self.scaling) * inside, labels


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


def _bend(largest: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Shifts (2, n, n) in x and y of no more than ``largest``, smooth between few random ones."""
    shifts = rng.uniform(-largest, largest, (2, _FEW, _FEW))
    bend: npt.NDArray[np.float64] = ndimage.zoom(shifts, (1, _MANY / _FEW, _MANY / _FEW), order=3, mode="nearest")
    return bend.clip(-largest, largest)
