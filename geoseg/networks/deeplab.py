"""DeepLab v1 and v2: dilated convolutions at stride 8, and one or four of them to see farther."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet101
from torchvision.models._utils import IntermediateLayerGetter

from geoseg.networks import vgg
from geoseg.networks.logits import LogitsConv2d

_RATES = (6, 12, 18, 24)
_SCALES = (0.5, 0.75)


class LargeFOV(nn.Module):
    """The fully connected layers of VGG-16, thinned out, as convolutions with a large field of view.

    Chen et al. 2015, section 3.2: fc6 keeps 3 x 3 of its 7 x 7 taps, set apart by its dilation, and a quarter of its channels.

    Args:
        classes: of the output.
        dilation: of fc6.
        width: factor of all channel numbers of the paper.
        dropout: share of fc6 and fc7 that is dropped in training.
    """

    def __init__(self, classes: int, dilation: int, width: float, dropout: float) -> None:
        super().__init__()
        dense = vgg.scaled(1024, width)
        self.fc6 = vgg.initialised(nn.Conv2d(vgg.scaled(512, width), dense, 3, padding=dilation, dilation=dilation))
        self.fc7 = vgg.initialised(nn.Conv2d(dense, dense, 1))
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout(dropout)
        self.fc8 = _score(LogitsConv2d(dense, classes, 1))

    def load_dense(self, state: Mapping[str, Tensor]) -> None:
        """Take over every fourth output and every third tap of VGG-16's fully connected layers.

        Raises:
            CardError: if they do not fit.
        """
        vgg.load_dense(self.fc6, state, "classifier.0", keep=(4, 1, 3))
        vgg.load_dense(self.fc7, state, "classifier.3", keep=(4, 4, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Scores (N, K, h, w) of features (N, C, h, w)."""
        features = self.dropout(self.relu(self.fc6(features)))
        answer: Tensor = self.fc8(self.dropout(self.relu(self.fc7(features))))
        return answer


class _DeepLab(nn.Module, ABC):
    """What both versions share: an input of 8 k + 1 pixels a side has k + 1 scores a side, each at the place of a pixel."""

    stride = 8

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, K, H, W) of scaled pixels (N, B, H, W)."""
        height, width = pixels.shape[-2:]
        below, right = ((1 - length) % self.stride for length in (height, width))
        pixels = functional.pad(pixels, (0, right, 0, below))
        return _resized(self._scores(pixels), [*pixels.shape[-2:]])[..., :height, :width]

    @abstractmethod
    def _scores(self, pixels: Tensor) -> Tensor:
        """Scores (N, K, h, w) at every eighth pixel."""


class DeepLabV1(_DeepLab):
    """DeepLab-LargeFOV of Chen, Papandreou, Kokkinos, Murphy and Yuille 2015, section 3 and table 2 (bottom).

    VGG-16 with its last two poolings at stride 1, conv5 dilated by 2 and fc6 by 12 in their stead, and bilinear upsampling. Poolings are
    3 x 3 and centred on a pixel, so that scores lie on every eighth pixel, and an average pooling follows the last one, as in the
    authors' Caffe model. The conditional random field that follows there is no part of the network.

    Args:
        bands: of the input.
        classes: of the output.
        width: factor of all channel numbers of the paper.
        dropout: share of fc6 and fc7 that is dropped in training.
    """

    trunk = "vgg16"

    def __init__(self, bands: int, classes: int, *, width: float = 1.0, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = _vgg(bands, width)
        self.pool5a = nn.AvgPool2d(3, stride=1, padding=1)
        self.head = LargeFOV(classes, 12, width, dropout)

    def load_trunk(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of torchvision's ``vgg16``; the fully connected layers thinned out.

        Raises:
            CardError: if they do not fit.
        """
        vgg.load_features(self.features, state)
        self.head.load_dense(state)

    def _scores(self, pixels: Tensor) -> Tensor:
        answer: Tensor = self.head(self.pool5a(self.features(pixels)))
        return answer


class DeepLabV2(_DeepLab):
    """DeepLab with atrous spatial pyramid pooling of Chen et al. 2018, sections 3.1, 3.2 and 4.1, figures 4 and 7.

    On a ResNet-101 whose last two stages are dilated, four convolutions of 3 x 3, dilated by 6, 12, 18 and 24, score the classes, and are
    summed (ASPP-L). On VGG-16, each of the four has an fc6, an fc7 and an fc8 of its own. Bilinear upsampling follows.

    With ``multiscale``, the input is also seen at half and three quarters of its size, and each score is the largest of the three, at an
    eighth of the resolution, as in the authors' Caffe model. The conditional random field is no part of the network.

    The ResNet is torchvision's (strides on its 3 x 3 convolutions), so that its weights load.

    Args:
        bands: of the input.
        classes: of the output.
        trunk: ``resnet101`` or ``vgg16``.
        multiscale: whether to see three sizes; the stride is then 32.
        width: factor of the channel numbers; of a ResNet's 3 x 3 convolutions only.
        dropout: share of fc6 and fc7 that is dropped in training; only VGG-16 has them.

    Raises:
        ValueError: if the trunk is unknown.
    """

    def __init__(
        self,
        bands: int,
        classes: int,
        *,
        trunk: Literal["resnet101", "vgg16"] = "resnet101",
        multiscale: bool = False,
        width: float = 1.0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.trunk, self.multiscale = trunk, multiscale
        if multiscale:
            self.stride = 32
        self.features: nn.Module
        if trunk == "vgg16":
            self.features = _vgg(bands, width)
            self.heads = nn.ModuleList(LargeFOV(classes, rate, width, dropout) for rate in _RATES)
        elif trunk == "resnet101":
            self.features = _resnet(bands, width)
            self.heads = nn.ModuleList(_score(LogitsConv2d(2048, classes, 3, padding=rate, dilation=rate)) for rate in _RATES)
        else:
            raise ValueError(f"trunk {trunk!r} is neither 'resnet101' nor 'vgg16'")

    def load_trunk(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of torchvision's ``resnet101`` or ``vgg16``; the fully connected layers of the latter thinned out.

        Raises:
            CardError: if they do not fit.
        """
        if self.trunk == "vgg16":
            vgg.load_features(self.features, state)
            for head in self.heads:
                cast(LargeFOV, head).load_dense(state)
        else:
            vgg.load_layers(self.features, state, first="conv1.weight")

    def _scores(self, pixels: Tensor) -> Tensor:
        scores = self._of_one_size(pixels)
        if not self.multiscale:
            return scores
        size = [*scores.shape[-2:]]
        for scale in _SCALES:
            smaller = _resized(pixels, [round((length - 1) * scale) + 1 for length in pixels.shape[-2:]])
            scores = torch.maximum(scores, _resized(self._of_one_size(smaller), size))
        return scores

    def _of_one_size(self, pixels: Tensor) -> Tensor:
        features: Any = self.features(pixels)
        if isinstance(self.features, IntermediateLayerGetter):
            features = features["out"]
        return torch.stack([head(features) for head in self.heads]).sum(0)


def _vgg(bands: int, width: float) -> nn.Sequential:
    pools = [nn.MaxPool2d(3, stride=stride, padding=1) for stride in (2, 2, 2, 1, 1)]
    return vgg.features(bands, width, pools=pools, dilations=(1, 1, 1, 1, 2))


def _resnet(bands: int, width: float) -> IntermediateLayerGetter:
    trunk = resnet101(weights=None, replace_stride_with_dilation=[False, True, True], width_per_group=vgg.scaled(64, width))
    if bands != 3:
        trunk.conv1 = vgg.initialised(nn.Conv2d(bands, 64, kernel_size=7, stride=2, padding=3, bias=False))
    return IntermediateLayerGetter(trunk, return_layers={"layer4": "out"})


def _score(layer: LogitsConv2d) -> LogitsConv2d:
    """A layer that scores classes, near zero at first (standard deviation 0.01, as in the authors' Caffe models)."""
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _resized(maps: Tensor, size: list[int]) -> Tensor:
    """Bilinear, the outermost samples staying where they are."""
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=True)
