"""U-Net as its paper has it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from geoseg.networks import vgg
from geoseg.networks.logits import LogitsConv2d
from geoseg.networks.mirror import mirrored

_LEVELS = 5
_MARGIN = 92


class UNetOriginal(nn.Module):
    """U-Net of Ronneberger, Fischer and Brox 2015, section 2 and figure 1.

    Five levels of two 3 x 3 convolutions, 64 to 1024 channels, max-pooling between; then up-convolutions of 2 x 2 that halve the
    channels, and the maps of the contracting path beside them. Dropout ends the contracting path (section 3.1; the last two levels, as in
    the authors' Caffe model).

    With ``valid`` padding, as in the paper, convolutions see no pixel that is not there, so the map shrinks by 92 pixels at each side. What
    is missing is extrapolated by mirroring (figure 2), so that the answer has the size of the input. With ``same`` padding,
    convolutions see zeros outside, and nothing is mirrored: less faithful and about a third less work on a tile of 512 pixels.

    Args:
        bands: of the input.
        classes: of the output.
        padding: ``valid`` or ``same``.
        width: factor of all channel numbers of the paper.
        dropout: share that is dropped in training.

    Raises:
        ValueError: if the padding is neither.
    """

    stride = 16

    def __init__(
        self, bands: int, classes: int, *, padding: Literal["valid", "same"] = "valid", width: float = 1.0, dropout: float = 0.5
    ) -> None:
        super().__init__()
        if padding not in ("valid", "same"):
            raise ValueError(f"padding {padding!r} is neither 'valid' nor 'same'")
        self.padding = padding
        channels = [vgg.scaled(64 * 2**level, width) for level in range(_LEVELS)]
        self.contracting = nn.ModuleList(_convolutions(a, b, padding) for a, b in zip([bands, *channels], channels, strict=False))
        steps = [*zip(channels[:0:-1], channels[-2::-1], strict=True)]
        self.upward = nn.ModuleList(vgg.initialised(nn.ConvTranspose2d(a, b, 2, stride=2)) for a, b in steps)
        self.expanding = nn.ModuleList(_convolutions(2 * b, b, padding) for _, b in steps)
        self.dropout = nn.Dropout(dropout)
        self.score = vgg.initialised(LogitsConv2d(channels[0], classes, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, K, H, W) of scaled pixels (N, B, H, W)."""
        height, width = pixels.shape[-2:]
        features, kept = self._surrounded(pixels), []
        for level, block in enumerate(self.contracting):
            features = block(functional.max_pool2d(features, 2, ceil_mode=True) if level else features)
            features = self.dropout(features) if level >= _LEVELS - 2 else features
            kept.append(features)
        kept.pop()
        for grow, block in zip(self.upward, self.expanding, strict=True):
            features = block(_beside(kept.pop(), functional.relu(grow(features))))
        answer: Tensor = self.score(features)[..., :height, :width]
        return answer

    def _surrounded(self, pixels: Tensor) -> Tensor:
        """With valid padding: what convolutions will take away, and as much more as makes every map that is pooled even."""
        if self.padding == "same":
            return pixels
        below, right = ((4 - length) % self.stride for length in pixels.shape[-2:])
        return mirrored(pixels, _MARGIN, below, right)


def _convolutions(before: int, after: int, padding: str) -> nn.Sequential:
    layers = [nn.Conv2d(before, after, 3, padding=padding), nn.ReLU(inplace=True)]
    return vgg.initialised(nn.Sequential(*layers, nn.Conv2d(after, after, 3, padding=padding), nn.ReLU(inplace=True)))


def _beside(kept: Tensor, grown: Tensor) -> Tensor:
    """Channels of both; the larger is cropped to the smaller: the kept map at each side (valid), or the grown one at its end (same)."""
    height, width = (min(pair) for pair in zip(kept.shape[-2:], grown.shape[-2:], strict=True))
    row, col = (kept.shape[-2] - height) // 2, (kept.shape[-1] - width) // 2
    return torch.cat([kept[..., row : row + height, col : col + width], grown[..., :height, :width]], dim=1)
