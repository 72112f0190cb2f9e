"""Dilated convolutions: a front end on VGG-16, and the context module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from geoseg.networks import vgg
from geoseg.networks.logits import LogitsConv2d
from geoseg.networks.mirror import mirrored

_DILATIONS = (1, 1, 2, 4, 8, 16, 1)
_FACTORS: dict[str, Sequence[int]] = {"basic": (1, 1, 1, 1, 1, 1, 1), "large": (2, 2, 4, 8, 16, 32, 32)}
_MARGIN = 186


class Dilated(nn.Module):
    """Front end and context module of Yu and Koltun 2016, sections 3 and 4, table 1.

    The front end is VGG-16 without its last two poolings; the convolutions after each are dilated by 2 and by 4 instead, the fully
    connected layers are convolutions, and the scores have an eighth of the resolution. The context module looks at them at ever larger
    dilations; it begins as the identity (equations 4 and 5). Bilinear upsampling brings the scores to the size of the pixels.

    With ``valid`` padding, as in the paper, the front end sees no pixel that is not there; the input goes on beyond its border, mirrored,
    186 pixels at each side (the authors' code). That is three times the work on a tile of 512 pixels; with ``same`` padding,
    convolutions see zeros outside.

    Args:
        bands: of the input.
        classes: of the output.
        context: ``basic``, ``large``, or ``none`` for the front end alone.
        padding: ``valid`` or ``same``, of the front end.
        width: factor of all channel numbers of the front end.
        dropout: share of fc6 and fc7 that is dropped in training.

    Raises:
        ValueError: if an option is unknown.
    """

    stride = 8
    trunk = "vgg16"

    def __init__(
        self,
        bands: int,
        classes: int,
        *,
        context: Literal["none", "basic", "large"] = "large",
        padding: Literal["valid", "same"] = "valid",
        width: float = 1.0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if padding not in ("valid", "same") or context not in ("none", *_FACTORS):
            raise ValueError(f"expected padding 'valid' or 'same', and context 'none', 'basic' or 'large'; got {padding!r}, {context!r}")
        self.padding = padding
        same, dense = padding == "same", vgg.scaled(4096, width)
        pools = [*(nn.MaxPool2d(2, ceil_mode=True) for _ in range(3)), nn.Identity(), nn.Identity()]
        self.features = vgg.features(bands, width, pools=pools, dilations=(1, 1, 1, 1, 2), padded=same)
        self.fc6 = vgg.initialised(nn.Conv2d(vgg.scaled(512, width), dense, 7, dilation=4, padding=12 if same else 0))
        self.fc7 = vgg.initialised(nn.Conv2d(dense, dense, 1))
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout(dropout)
        self.final = LogitsConv2d(dense, classes, 1)
        self.context = nn.Identity() if context == "none" else Context(classes, _FACTORS[context])

    def load_trunk(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of torchvision's ``vgg16``, the fully connected layers included.

        Raises:
            CardError: if they do not fit.
        """
        vgg.load_features(self.features, state)
        vgg.load_dense(self.fc6, state, "classifier.0")
        vgg.load_dense(self.fc7, state, "classifier.3")

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, K, H, W) of scaled pixels (N, B, H, W)."""
        height, width = pixels.shape[-2:]
        if self.padding == "valid":
            pixels = mirrored(pixels, _MARGIN, -height % self.stride, -width % self.stride)
        features = self.dropout(self.relu(self.fc6(self.features(pixels))))
        features = self.dropout(self.relu(self.fc7(features)))
        scores = self.context(self.final(features))
        grown = functional.interpolate(scores, scale_factor=self.stride, mode="bilinear", align_corners=False)
        return grown[..., :height, :width]


class Context(nn.Module):
    """The context module: scores in, scores out, each seeing 67 x 67 of them (Yu and Koltun 2016, section 3, table 1).

    Args:
        classes: of the scores.
        factors: channels of the first seven layers, in multiples of the classes.
    """

    def __init__(self, classes: int, factors: Sequence[int]) -> None:
        super().__init__()
        channels = [classes, *(classes * factor for factor in factors)]
        layers: list[nn.Module] = []
        for before, after, dilation in zip(channels, channels[1:], _DILATIONS, strict=False):
            layers += [_identity(nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation), classes), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, _identity(LogitsConv2d(channels[-1], classes, 1), classes))

    def forward(self, scores: Tensor) -> Tensor:
        """Scores (N, K, H, W) of scores (N, K, H, W)."""
        answer: Tensor = self.layers(scores)
        return answer


def _identity(layer: nn.Conv2d, classes: int) -> nn.Conv2d:
    """The layer, set to hand on the scores of each class (equation 5, of which equation 4 is the case of as many channels as classes).

    Channels belong to the classes in equal shares. Where a class has several, noise makes them differ.
    """
    before, after = layer.in_channels, layer.out_channels
    centre, share = layer.kernel_size[0] // 2, classes / after
    same = torch.arange(after)[:, None] * classes // after == torch.arange(before) * classes // before
    nn.init.normal_(layer.weight, std=0.01 * share if max(before, after) > classes else 0.0)
    with torch.no_grad():
        layer.weight[:, :, centre, centre] = torch.where(same.to(layer.weight.device), share, layer.weight[:, :, centre, centre])
        if layer.bias is not None:
            layer.bias.zero_()
    return layer
