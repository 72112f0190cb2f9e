"""FCN with a dilated ResNet-50, as in torchvision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.fcn import FCNHead

from geoseg.networks.logits import LogitsConv2d


class FCNResNet50(nn.Module):
    """Fully convolutional network of Long et al. on a ResNet-50 whose last two stages are dilated instead of strided.

    Layer names and shapes are those of ``torchvision.models.segmentation.fcn_resnet50``, so its weights load.

    Args:
        bands: of the input.
        classes: of the output.
        auxiliary: whether to hold the second head on the third stage, which only training uses.
    """

    stride = 8

    def __init__(self, bands: int, classes: int, *, auxiliary: bool = False) -> None:
        super().__init__()
        trunk = resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
        if bands != 3:
            trunk.conv1 = nn.Conv2d(bands, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.backbone = IntermediateLayerGetter(trunk, return_layers={"layer3": "aux", "layer4": "out"})
        self.classifier = _head(2048, classes)
        self.aux_classifier = _head(1024, classes) if auxiliary else None

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, K, H, W) of scaled pixels (N, B, H, W)."""
        return self._upsample(self.classifier(self.backbone(pixels)["out"]), pixels)

    def forward_with_auxiliary(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both heads, each (N, K, H, W); for training a network that was built with ``auxiliary``."""
        if self.aux_classifier is None:
            raise RuntimeError("built without auxiliary head; build with auxiliary=True to train it")
        features = self.backbone(pixels)
        return self._upsample(self.classifier(features["out"]), pixels), self._upsample(self.aux_classifier(features["aux"]), pixels)

    @staticmethod
    def _upsample(logits: Tensor, pixels: Tensor) -> Tensor:
        size: torch.Size = pixels.shape[-2:]
        return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _head(channels: int, classes: int) -> FCNHead:
    head = FCNHead(channels, classes)
    head[-1] = LogitsConv2d.of(head[-1])
    return head
