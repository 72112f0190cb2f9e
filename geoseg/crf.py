"""Sharpen logits along image edges (DeepLab's dense CRF)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import torch
from torch.nn import functional

from geoseg.errors import OptionsError

_TRUNCATE = 4.0
_ROWS = 64


@dataclass(frozen=True, slots=True)
class DenseCRF:
    """A fully connected CRF with Gaussian edge potentials, solved by mean field.

    Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials" (NIPS 2011), as DeepLab
    uses it (Chen et al., ICLR 2015, section 3.2; PAMI 2018, section 3.3): Potts compatibility, and between the pixels i and j
    at the positions p with the colours I the two kernels of equation (3)::

        appearance * exp(-|p_i - p_j|^2 / (2 position_px^2) - |I_i - I_j|^2 / (2 colour^2))
        smoothness * exp(-|p_i - p_j|^2 / (2 smoothness_px^2))

    Each kernel is normalised symmetrically, ``k_ij / sqrt(sum_j k_ij sum_i k_ij)``, as in the authors' code, so that a weight
    means the same in the middle of a scene and beside missing pixels. The pixel itself is one of the pixels of its sums.

    A scene is answered in windows of a lattice of its own, which overlap as the network's tiles do: so the answer of a pixel
    does not depend on the block that asks. Beside one window over the whole demo scene, the scores are off by 0.0013 in the mean and
    99.7 % of the classes are the same. The defaults were chosen on the default model's validation crops (20 pixels are 4 m there).
    Marginals of a mean field are surer than the network was, and small things shrink: see the README.

    Attributes:
        appearance: weight of the first kernel, in units of logits.
        position_px: its standard deviation in position, pixels that the network sees.
        colour: its standard deviation in colour, where the range of a band that the model's card names is 0 to 255.
        smoothness: weight of the second kernel, in units of logits.
        smoothness_px: its standard deviation, pixels that the network sees.
        iterations: of the mean field.
        tile: height and width of a window, pixels that the network sees.
        overlap: pixels that neighbouring windows share.
    """

    appearance: float = 4.0
    position_px: float = 20.0
    colour: float = 13.0
    smoothness: float = 0.5
    smoothness_px: float = 1.5
    iterations: int = 5
    tile: int = 512
    overlap: int = 64

    def __post_init__(self) -> None:
        """Refuse what is no kernel."""
        for name in ("position_px", "colour", "smoothness_px"):
            if not 0 < getattr(self, name) < math.inf:
                raise OptionsError(f"crf {name} is {getattr(self, name)}; expected a number above 0")
        for name in ("appearance", "smoothness", "iterations"):
            if not 0 <= getattr(self, name) < math.inf:
                raise OptionsError(f"crf {name} is {getattr(self, name)}; expected a number from 0 on")

    def sharpen(self, logits: torch.Tensor, colours: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Logits whose softmax are the marginals after some iterations of mean field.

        Args:
            logits: ``(K, H, W)`` float32, the unary potentials with the sign changed.
            colours: ``(B, H, W)`` float32, 0 to 255.
            known: ``(H, W)`` bool; other pixels take no part, whatever they hold.

        Returns:
            ``(K, H, W)`` float32; the given logits where not known.
        """
        if not known.any() or not self.iterations:
            return logits
        with torch.inference_mode():
            whole = logits.flatten(1).T.clone(memory_format=torch.contiguous_format)
            there = None if known.all() else known.flatten().nonzero()[:, 0]
            unary = whole if there is None else whole[there]
            filters = [
                (weight, each, each(torch.ones_like(unary[:, :1])).rsqrt_()) for weight, each in self._filters(colours, known, there)
            ]
            sharp = unary
            for _ in range(self.iterations):
                marginals = sharp.softmax(1)
                sharp = unary.clone()
                for weight, each, norm in filters:
                    sharp.addcmul_(each(marginals * norm), norm, value=weight)
            if there is not None:
                whole[there] = sharp
                sharp = whole
            return sharp.T.reshape(logits.shape)

    def _filters(self, colours: torch.Tensor, known: torch.Tensor, there: torch.Tensor | None) -> list[tuple[float, Lattice | Blur]]:
        """The kernels that have a weight."""
        found: list[tuple[float, Lattice | Blur]] = []
        if self.appearance:
            rows, cols = (torch.arange(n, dtype=torch.float32, device=known.device) / self.position_px for n in known.shape)
            place = torch.stack([rows[:, None].expand(known.shape), cols.expand(known.shape)])
            features = torch.cat([place, colours / self.colour]).flatten(1)
            found.append((self.appearance, Lattice(features if there is None else features[:, there])))
        if self.smoothness:
            found.append((self.smoothness, Blur(self.smoothness_px, known.shape, there)))
        return found


class Lattice:
    """A Gaussian filter of unit standard deviation between scattered points, on the permutohedral lattice.

    Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice" (Eurographics 2010): the values of
    the points go to the corners of the simplices they lie in, those are blurred along each axis of the lattice, and the points
    take them back. Corners are told apart by a linear hash of their coordinates, so that a neighbour's hash is a constant away.

    An approximation, up to a factor which the normalisation of a kernel removes: beside sums over all pairs of pixels the marginals
    of ``DenseCRF`` are off by at most 0.005 in the mean, 99 of 100 by at most 0.04, and those of pixels whose colour is almost
    alone in its surroundings by up to 0.4; 98 of 100 pixels have the same class (tested on crops of the demo scene).
    """

    def __init__(self, features: torch.Tensor) -> None:
        """Find the lattice under the points.

        Args:
            features: ``(d, n)`` float32, coordinates in units of the standard deviation.
        """
        d, n = features.shape
        device = features.device
        base, rank, weights = _simplices(features)
        rng = np.random.default_rng(2010)
        hashes = torch.from_numpy(rng.integers(1 << 45, 1 << 46, d)).to(device)
        steps = hashes * (d + 1)
        low = (base[:d] * hashes[:, None]).sum(0)
        total = int(hashes.sum())
        keys = torch.empty((d + 1, n), dtype=torch.int64, device=device)
        for corner in range(d + 1):
            keys[corner] = low + corner * total
            for axis in range(d):
                keys[corner] -= (rank[axis] > d - corner) * steps[axis]
        keys, order = torch.sort(keys.flatten(), stable=True)
        first = torch.ones_like(keys, dtype=torch.bool)
        torch.ne(keys[1:], keys[:-1], out=first[1:])
        corner_of = torch.empty_like(order, dtype=torch.int32).scatter_(0, order, first.cumsum(0, dtype=torch.int32) - 1)
        keys = keys[first]
        self._size = len(keys)
        self._points = (order % n).int()
        self._starts = first.nonzero()[:, 0].int()
        self._shares = weights.flatten().index_select(0, order)
        self._corners = corner_of.view(d + 1, n).T.contiguous()
        self._weights = weights.T.contiguous()
        offsets = [total - (int(steps[axis]) if axis < d else 0) for axis in range(d + 1)]
        self._axes = [self._neighbours(keys, offset) for offset in offsets]
        self._kernel = torch.tensor([0.25, 0.5, 0.25], device=device).repeat(self._size + 1, 1)

    def _neighbours(self, keys: torch.Tensor, offset: int) -> torch.Tensor:
        """Each corner between its two neighbours along an axis, ``(corners + 1, 3)`` int32; the last, which is empty, for none."""
        wanted = keys + offset
        after = torch.searchsorted(keys, wanted, out_int32=True).clamp_(max=self._size - 1)
        here = (keys.index_select(0, after) == wanted).nonzero()[:, 0]
        table = torch.full((self._size + 1, 3), self._size, dtype=torch.int32, device=keys.device)
        table[:, 1] = torch.arange(self._size + 1, device=keys.device)
        table[here, 2] = after[here]
        table[after[here], 0] = here.int()
        return table

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Sums of the values ``(n, K)`` float32, each weighted by the kernel between two points; the same shape."""
        held = functional.embedding_bag(self._points, values, self._starts, mode="sum", per_sample_weights=self._shares)
        held = functional.pad(held, (0, 0, 0, 1))
        for axis in self._axes:
            held = functional.embedding_bag(axis, held, mode="sum", per_sample_weights=self._kernel)
        return functional.embedding_bag(self._corners, held, mode="sum", per_sample_weights=self._weights)


def _simplices(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The simplex around each point: section 3.2 and figure 3 of the paper.

    Args:
        features: ``(d, n)`` float32.

    Returns:
        The remainder-0 corner's coordinates, ``(d + 1, n)`` int64; the order of the coordinates from there, largest first,
        ``(d + 1, n)`` int64; and the barycentric weights of the corners of remainder 0 to d, ``(d + 1, n)`` float32.
    """
    d, n = features.shape
    lifted = torch.zeros((d + 1, n), device=features.device)
    for axis in range(d):
        part = features[axis] * ((d + 1) * math.sqrt(2 / 3) / math.sqrt((axis + 1) * (axis + 2)))
        lifted[: axis + 1] += part
        lifted[axis + 1] -= (axis + 1) * part
    base = (lifted / (d + 1)).round_()
    rest = lifted - base * (d + 1)
    rank = base.sum(0).long().expand(d + 1, n).clone()
    for one, other in combinations(range(d + 1), 2):
        behind = rest[one] < rest[other]
        rank[one] += behind
        rank[other] += ~behind
    turn = (rank < 0).long() - (rank > d).long()
    rank += turn * (d + 1)
    base += turn
    rest = (lifted - base * (d + 1)) / (d + 1)
    rising = torch.empty_like(rest).scatter_(0, d - rank, rest)
    weights = torch.cat([1 + rising[:1] - rising[-1:], rising.diff(dim=0)])
    return base.long() * (d + 1), rank, weights


class Blur:
    """A Gaussian filter between the known pixels of a window, truncated at four standard deviations."""

    def __init__(self, sigma: float, shape: tuple[int, ...], there: torch.Tensor | None) -> None:
        """Choose a width.

        Args:
            sigma: standard deviation, pixels.
            shape: height and width of the window.
            there: indices of the known pixels, ``(n,)`` int64; None for all.
        """
        self._sigma, self._shape, self._there = sigma, shape, there

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Sums of the values ``(n, K)`` float32, each weighted by the kernel between two pixels; the same shape."""
        height, width = self._shape
        pixels = values
        if self._there is not None:
            pixels = values.new_zeros((height * width, values.shape[1]))
            pixels[self._there] = values
        for rows, cols in ((height, width), (width, height)):
            pixels = self._along_rows(pixels.view(rows, -1)).view(rows, cols, -1).transpose(0, 1).reshape(rows * cols, -1)
        return pixels if self._there is None else pixels[self._there]

    def _along_rows(self, values: torch.Tensor) -> torch.Tensor:
        """Filter ``(rows, M)`` along the rows, some rows at a time, by a banded matrix."""
        band = _band(self._sigma, values.device)
        reach = (band.shape[1] - band.shape[0]) // 2
        rows, columns = values.shape
        pieces = -(-rows // _ROWS)
        held = functional.pad(values, (0, 0, reach, reach + pieces * _ROWS - rows))
        seen = held.as_strided((pieces, _ROWS + 2 * reach, columns), (_ROWS * columns, columns, 1))
        return torch.matmul(band, seen).view(-1, columns)[:rows]


@lru_cache(maxsize=8)
def _band(sigma: float, device: torch.device) -> torch.Tensor:
    """Weights of the rows around a piece of rows for each of its rows, ``(rows, rows + 2 reach)`` float32."""
    reach = math.ceil(_TRUNCATE * sigma)
    away = torch.arange(_ROWS + 2 * reach)[None] - torch.arange(_ROWS)[:, None] - reach
    return torch.where(away.abs() <= reach, torch.exp(-0.5 * (away / sigma) ** 2), 0).to(device)
