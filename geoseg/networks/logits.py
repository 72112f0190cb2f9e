"""The last convolution, in full precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def in_float32(tensor: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on the device of a tensor."""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


class LogitsConv2d(nn.Conv2d):
    """A convolution that answers in float32 even where autocast multiplies in less.

    Logits rounded to bfloat16 tie: near a border of two classes, rounding alone changes the class of up to 3 % of all
    pixels. The layer has few channels, so full precision costs next to nothing here.
    """

    @classmethod
    def of(cls, layer: nn.Conv2d) -> LogitsConv2d:
        """The same convolution with the same parameters."""
        made = cls(
            layer.in_channels,
            layer.out_channels,
            (layer.kernel_size[0], layer.kernel_size[1]),
            padding=layer.padding if isinstance(layer.padding, str) else (layer.padding[0], layer.padding[1]),
            bias=layer.bias is not None,
        )
        made.weight, made.bias = layer.weight, layer.bias
        return made

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, K, H, W) float32 of features (N, C, H, W) of any floating type."""
        with in_float32(features):
            return super().forward(features.float())
