"""Bilinear upsampling as a transposed convolution, which may then learn."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from geoseg.networks.logits import in_float32


class BilinearUpsampling(nn.ConvTranspose2d):
    """A transposed convolution that begins as bilinear interpolation of each channel, in float32 even under autocast.

    Long et al. 2015, section 3.3. Kernel 2f, stride f, padding f/2 for an even factor f, so that the answer has f times the size, and
    away from the border is that of ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``; at the border, what
    lies outside counts as zero.

    Args:
        channels: in and out.
        factor: even.
        learned: whether the kernels may change.
    """

    def __init__(self, channels: int, factor: int, *, learned: bool) -> None:
        super().__init__(channels, channels, 2 * factor, stride=factor, padding=factor // 2, bias=False)
        self.factor = factor
        hat = 1 - (torch.arange(2 * factor) + 0.5 - factor).abs() / factor
        with torch.no_grad():
            self.weight.zero_()
            self.weight[range(channels), range(channels)] = torch.outer(hat, hat).to(self.weight)
        self.weight.requires_grad_(learned)

    def forward(self, features: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Features (N, C, f H, f W) float32 of features (N, C, H, W); ``output_size``, at most that, crops them below and right."""
        with in_float32(features):
            grown = functional.conv_transpose2d(features.float(), self.weight, None, self.factor, self.factor // 2)
        return grown if output_size is None else grown[..., : output_size[-2], : output_size[-1]]
