"""ResNet trunks, strided or dilated, and networks of a trunk and a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.segmentation.fcn import FCNHead

from geoseg.networks.logits import LogitsConv2d

_BLOCKS = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
_DILATED = {32: [False, False, False], 16: [False, False, True], 8: [False, True, True]}


class _ResNet(ResNet):  # type: ignore[misc]
    """Torchvision's, with a multiple of the channels in its stages."""

    def __init__(self, blocks: list[int], width: float, **options: Any) -> None:
        self.width = width
        super().__init__(Bottleneck, blocks, **options)

    def _make_layer(self, block: type[Bottleneck], planes: int, *args: Any, **options: Any) -> nn.Sequential:
        layer: nn.Sequential = super()._make_layer(block, max(1, round(planes * self.width)), *args, **options)
        return layer


class Trunk(IntermediateLayerGetter):  # type: ignore[misc]
    """The stages of a ResNet (He et al. 2016, table 1), as ``{"layer1": (N, C, H / 4, W / 4), ...}``.

    Names and shapes of its parameters are those of ``torchvision.models.resnet50`` and its kin, without ``fc``.

    Attributes:
        trunk: name of the whole network in torchvision.
        channels: of each stage that is given.
    """

    trunk: str
    channels: dict[str, int]


def trunk(
    depth: int,
    bands: int,
    stages: Sequence[str],
    *,
    output_stride: int = 32,
    multi_grid: Sequence[int] | None = None,
    width: float = 1.0,
) -> Trunk:
    """A ResNet without its classifier.

    Args:
        depth: 50, 101 or 152.
        bands: of the input.
        stages: those to give, of ``layer1`` (stride 4) to ``layer4`` (stride 32); later ones are left out.
        output_stride: 32, or 16 or 8: then the last one or two stages are dilated instead of strided.
        multi_grid: factors of the dilations of the three blocks of ``layer4`` (Chen et al. 2017, section 3.2.1); None
            gives torchvision's, which dilate the first block as the stage before.
        width: multiple of the channels of the stages; 1 is the paper's.

    Raises:
        ValueError: if there is no such trunk.
    """
    if depth not in _BLOCKS:
        raise ValueError(f"there is no ResNet-{depth}; depth is one of {', '.join(map(str, _BLOCKS))}")
    if output_stride not in _DILATED:
        raise ValueError(f"output stride {output_stride} is none of {', '.join(map(str, _DILATED))}")
    network = _ResNet(_BLOCKS[depth], width, replace_stride_with_dilation=_DILATED[output_stride])
    if bands != 3:
        network.conv1 = nn.Conv2d(bands, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    if multi_grid is not None:
        _dilate(network.layer4, 32 // output_stride, multi_grid)
    made = Trunk(network, return_layers={stage: stage for stage in stages})
    made.trunk = f"resnet{depth}"
    made.channels = {stage: getattr(network, stage)[-1].conv3.out_channels for stage in stages}
    return made


def _dilate(stage: nn.Sequential, unit: int, multi_grid: Sequence[int]) -> None:
    if len(multi_grid) != len(stage):
        raise ValueError(f"multi_grid {tuple(multi_grid)} needs {len(stage)} factors, one for each block of the last stage")
    for block, factor in zip(stage, multi_grid, strict=True):
        convolution: Any = block.conv2
        convolution.dilation = convolution.padding = (unit * factor, unit * factor)


class Headed(nn.Module):
    """A trunk, a head on its last stage, and for training an auxiliary head on the one before.

    Names of parameters are those of ``torchvision.models.segmentation``, so its weights load.

    Args:
        backbone: a trunk that gives ``layer4``, and ``layer3`` for the auxiliary head.
        classifier: the head.
        aux_classifier: the auxiliary head, a small FCN (Zhao et al. 2017, figure 4), or None.
        stride: of the trunk's last stage.
    """

    def __init__(self, backbone: Trunk, classifier: nn.Module, aux_classifier: nn.Module | None, stride: int) -> None:
        super().__init__()
        self.backbone, self.classifier, self.aux_classifier, self.stride = backbone, classifier, aux_classifier, stride

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, K, H, W) of scaled pixels (N, B, H, W)."""
        return resized(self.classifier(self.backbone(pixels)["layer4"]), pixels)

    def forward_with_auxiliary(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both heads, each (N, K, H, W); for training a network that was built with ``auxiliary``.

        Raises:
            RuntimeError: if there is no auxiliary head.
        """
        if self.aux_classifier is None:
            raise RuntimeError("built without auxiliary head; build with auxiliary=True to train it")
        stages = self.backbone(pixels)
        return resized(self.classifier(stages["layer4"]), pixels), resized(self.aux_classifier(stages["layer3"]), pixels)


def resized(features: Tensor, like: Tensor) -> Tensor:
    """Features (N, C, h, w), resized bilinearly to the height and width of another map."""
    return functional.interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=False)


def enlarged(features: Tensor, factor: int, like: Tensor) -> Tensor:
    """Features (N, C, h, w), enlarged bilinearly and cropped, right and below, to the height and width of another map.

    By the factor itself, not to the other's size: so that an image moved by the stride has the same answer, moved, whatever its size.
    """
    grown = functional.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)
    return grown[..., : like.shape[-2], : like.shape[-1]]


def fcn_head(channels: int, classes: int) -> FCNHead:
    """Torchvision's head: 3x3 convolution to a quarter of the channels, batch norm, ReLU, dropout, scores."""
    head = FCNHead(channels, classes)
    head[-1] = LogitsConv2d.of(head[-1])
    return head
