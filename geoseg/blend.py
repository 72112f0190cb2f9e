"""Overlapping logits to one answer per pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from geoseg.errors import TilingError

if TYPE_CHECKING:
    import torch

Taper = Literal["flat", "hann", "linear", "gaussian", "box"]
TAPERS: tuple[Taper, ...] = get_args(Taper)


def taper(name: Taper, tile: int, overlap: int) -> np.ndarray:
    """Weights of a tile's pixels along one axis, ``(tile,)`` float32, shifted copies adding up to one.

    ``box`` is the plain crop of half an overlap on each side. ``flat`` gives no weight to the outer three eighths of
    the overlap, which padding spoils, and ramps smoothly (raised cosine) over the quarter that remains in the middle.
    ``linear`` and ``hann`` ramp over the whole overlap, the latter as a raised cosine. ``gaussian`` has a standard
    deviation of a quarter of the tile.

    The weights are divided by the sum of their shifted copies (the weight mass), so that the two-dimensional weights
    ``w[:, None] * w[None, :]`` of all tiles add up to one at every pixel: crop and blend are one formula.

    Raises:
        TilingError: if the overlap leaves a pixel without weight.
    """
    stride = tile - overlap
    distance = np.minimum(np.arange(tile), np.arange(tile)[::-1]) + 0.5
    match name:
        case "box":
            margin = overlap // 2
            weight = ((np.arange(tile) >= margin) & (np.arange(tile) < margin + stride)).astype(np.float64)
        case "flat":
            weight = _ramp(distance, start=overlap * 3 / 8, length=overlap / 4)
        case "linear":
            weight = np.clip(distance / max(overlap, 1), 0, 1)
        case "hann":
            weight = _ramp(distance, start=0, length=overlap)
        case "gaussian":
            weight = np.exp(-0.5 * ((np.arange(tile) + 0.5 - tile / 2) / (tile / 4)) ** 2)
    mass = np.zeros(stride)
    np.add.at(mass, np.arange(tile) % stride, weight)
    if not (mass > 0).all():
        raise TilingError(f"taper {name!r} with tile {tile} and overlap {overlap} leaves pixels without weight; use a larger overlap")
    return (weight / mass[np.arange(tile) % stride]).astype(np.float32)


def _ramp(distance: np.ndarray, start: float, length: float) -> np.ndarray:
    """Raised cosine from 0 at ``start`` to 1 at ``start + length``."""
    at = np.clip((distance - start) / max(length, 1e-9), 0, 1)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * at))


def rim(weights: np.ndarray) -> int:
    """Width of the border of a tile that has no weight, pixels."""
    return int(np.flatnonzero(weights)[0])


class Canvas:
    """Rolling sum of the weighted logits of a strip of pixels, on the device.

    Holds ``depth`` rows, not the scene: rows that no later tile can touch are given away and their place used again.
    Tiles must come row by row. The order of additions at a pixel is the order of the lattice, so that the sum does
    not depend on which other pixels share the canvas.
    """

    def __init__(self, top: int, left: int, width: int, depth: int, classes: int, weights: np.ndarray, device: torch.device) -> None:
        """Begin a strip.

        Args:
            top: first row of the strip in the grid.
            left: first column of the strip in the grid.
            width: columns of the strip.
            depth: rows held at a time; a tile's height plus what is not taken away yet.
            classes: K.
            weights: of a tile along one axis, ``(tile,)`` float32, see ``taper``.
            device: where the sum lives.
        """
        import torch

        self.top, self.left = top, left
        axis = torch.from_numpy(weights).to(device)
        self._weights = axis[:, None] * axis[None, :]
        self.rim = rim(weights)
        self._sum = torch.zeros((classes, depth, width), dtype=torch.float32, device=device)
        self._mass = torch.zeros((depth, width), dtype=torch.float32, device=device)

    def add(self, logits: torch.Tensor, seen: tuple[int, int], window: tuple[int, int], known: torch.Tensor | None = None) -> None:
        """Add one tile.

        Args:
            logits: ``(K, H, W)`` float, of the pixels the network saw.
            seen: row and column of ``logits[:, 0, 0]`` in the grid.
            window: row and column of the tile's place on the lattice, from where its pixels are weighted.
            known: ``(H, W)`` bool, the pixels of ``logits`` that count; None for all.
        """
        tile = self._weights.shape[0]
        spans = []
        for axis, (low, size) in enumerate(((self.top, self._mass.shape[0]), (self.left, self._mass.shape[1]))):
            first = max(low, seen[axis], window[axis] + self.rim)
            end = min(low + size, seen[axis] + logits.shape[1 + axis], window[axis] + tile - self.rim)
            if first >= end:
                return
            spans.append(
                (
                    slice(first - low, end - low),
                    slice(first - seen[axis], end - seen[axis]),
                    slice(first - window[axis], end - window[axis]),
                )
            )
        (rows, seen_rows, tile_rows), (cols, seen_cols, tile_cols) = spans
        weights = self._weights[tile_rows, tile_cols]
        if known is not None:
            weights = weights * known[seen_rows, seen_cols]
        for total, part in zip(self._sum[:, rows, cols], logits[:, seen_rows, seen_cols], strict=True):
            total.addcmul_(part, weights)
        self._mass[rows, cols] += weights

    @property
    def depth(self) -> int:
        """Rows held at a time."""
        return self._mass.shape[0]

    def peek(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed logits ``(K, rows, W)`` and weight mass ``(rows, W)``, both float32, of some of the rows held.

        Views, until the canvas advances. The mass is 1 where all tiles were added and 0 where none was.
        """
        return self._sum[:, rows], self._mass[rows]

    def advance(self, rows: int) -> None:
        """Drop the first ``rows`` rows and move the rest to their place."""
        if not rows:
            return
        for held in (self._sum, self._mass):
            kept = held[..., rows:, :].clone()
            held[..., : kept.shape[-2], :] = kept
            held[..., kept.shape[-2] :, :] = 0
        self.top += rows


def interpolate(values: torch.Tensor, axis: int, low: np.ndarray, high: np.ndarray, part: np.ndarray) -> torch.Tensor:
    """Values between pixel centres along one axis: ``values[low] + (values[high] - values[low]) * part``.

    Args:
        values: float tensor.
        axis: along which to interpolate.
        low: indices, int64.
        high: indices, int64.
        part: weights of ``high``, 0 to 1.

    Returns:
        The tensor with ``len(low)`` entries along the axis. An entry does not depend on which others are asked for.
    """
    import torch

    near, far = (values.index_select(axis, torch.from_numpy(at).to(values.device)) for at in (low, high))
    shape = [1] * values.ndim
    shape[axis] = -1
    return near + (far - near) * torch.from_numpy(part.astype(np.float32)).to(values.device).view(shape)


def neighbours(pixels: np.ndarray, length: int, seen: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two pixels of another grid over the same extent between whose centres each pixel's centre lies.

    Args:
        pixels: indices on an axis of ``length`` pixels.
        length: pixels of that axis.
        seen: pixels of the other grid's axis.

    Returns:
        Indices of the two pixels (int64) and the weight of the second (float64, 0 to 1); the same pixel twice where
        the centres coincide and beyond the outermost centres.
    """
    at = np.clip((pixels + 0.5) * (seen / length) - 0.5, 0, seen - 1)
    low = np.floor(at).astype(np.int64)
    return low, np.ceil(at).astype(np.int64), at - low


def decide(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The winning channel and the confidence of each pixel.

    Args:
        logits: ``(K, H, W)`` float32.

    Returns:
        Index of the largest logit (the first of equals), ``(H, W)`` uint8; its softmax as ``round(254 p)``, ``(H, W)`` uint8;
        and whether all logits are finite, ``(H, W)`` bool.
    """
    import torch

    best, last = logits.amax(0), logits.shape[0] - 1
    rank = torch.zeros(best.shape, dtype=torch.uint8, device=logits.device)
    total, part = torch.zeros_like(best), torch.empty_like(best)
    for k in range(last + 1):
        torch.maximum(rank, (logits[k] == best).to(torch.uint8) * (last - k), out=rank)
        total += torch.sub(logits[k], best, out=part).exp_()
    finite = total.isfinite()
    return last - rank, total.reciprocal_().mul_(254).round_().to(torch.uint8), finite
