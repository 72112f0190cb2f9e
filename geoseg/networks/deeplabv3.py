"""DeepLabv3 with a ResNet, as in torchvision."""

from __future__ import annotations

from collections.abc import Sequence

from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from geoseg.networks.logits import LogitsConv2d
from geoseg.networks.resnet import Headed, fcn_head, trunk

_RATES = (6, 12, 18)


class _DeepLabV3(Headed):
    def __init__(
        self, depth: int, bands: int, classes: int, *, output_stride: int, multi_grid: Sequence[int] | None, auxiliary: bool, width: float
    ) -> None:
        if output_stride not in (8, 16):
            raise ValueError(f"output_stride {output_stride} is neither 8 nor 16")
        backbone = trunk(depth, bands, ("layer3", "layer4"), output_stride=output_stride, multi_grid=multi_grid, width=width)
        head = DeepLabHead(backbone.channels["layer4"], classes, [rate * 16 // output_stride for rate in _RATES])
        head[-1] = LogitsConv2d.of(head[-1])
        super().__init__(backbone, head, fcn_head(backbone.channels["layer3"], classes) if auxiliary else None, stride=output_stride)


class DeepLabV3ResNet50(_DeepLabV3):
    """DeepLabv3 on a ResNet-50: dilated last stages and atrous spatial pyramid pooling.

    Chen et al. 2017, section 3.3 and figure 5: one 1x1 and three 3x3 convolutions with rates (6, 12, 18) at output stride
    16, doubled at 8, and the mean of the image. Layer names and shapes are those of
    ``torchvision.models.segmentation.deeplabv3_resnet50``, so its weights load; the defaults answer as it does.

    Args:
        bands: of the input.
        classes: of the output.
        output_stride: 8 or 16.
        multi_grid: factors of the dilations of the three blocks of the last stage, e.g. (1, 2, 4), which is best in table 5;
            None gives torchvision's.
        auxiliary: whether to hold the second head on the third stage, which only training uses.
        width: multiple of the channels of the ResNet's stages.
    """

    def __init__(
        self,
        bands: int,
        classes: int,
        *,
        output_stride: int = 8,
        multi_grid: Sequence[int] | None = None,
        auxiliary: bool = False,
        width: float = 1.0,
    ) -> None:
        super().__init__(50, bands, classes, output_stride=output_stride, multi_grid=multi_grid, auxiliary=auxiliary, width=width)


class DeepLabV3ResNet101(_DeepLabV3):
    """DeepLabv3 on a ResNet-101; else as :class:`DeepLabV3ResNet50`.

    Layer names and shapes are those of ``torchvision.models.segmentation.deeplabv3_resnet101``, so its weights load.

    Args:
        bands: of the input.
        classes: of the output.
        output_stride: 8 or 16.
        multi_grid: factors of the dilations of the three blocks of the last stage, e.g. (1, 2, 4); None gives torchvision's.
        auxiliary: whether to hold the second head on the third stage, which only training uses.
        width: multiple of the channels of the ResNet's stages.
    """

    def __init__(
        self,
        bands: int,
        classes: int,
        *,
        output_stride: int = 8,
        multi_grid: Sequence[int] | None = None,
        auxiliary: bool = False,
        width: float = 1.0,
    ) -> None:
        super().__init__(101, bands, classes, output_stride=output_stride, multi_grid=multi_grid, auxiliary=auxiliary, width=width)
