"""FCN with a ResNet: dilated as in torchvision, or with the scores of three strides added."""

from __future__ import annotations

from torch import Tensor, nn

from geoseg.networks.logits import LogitsConv2d
from geoseg.networks.resnet import Headed, enlarged, fcn_head, trunk


class _FCNResNet(Headed):
    def __init__(self, depth: int, bands: int, classes: int, *, auxiliary: bool, width: float) -> None:
        backbone = trunk(depth, bands, ("layer3", "layer4"), output_stride=8, width=width)
        channels = backbone.channels
        auxiliary_head = fcn_head(channels["layer3"], classes) if auxiliary else None
        super().__init__(backbone, fcn_head(channels["layer4"], classes), auxiliary_head, stride=8)


class FCNResNet50(_FCNResNet):
    """Fully convolutional network of Long et al. on a ResNet-50 whose last two stages are dilated instead of strided.

    Layer names and shapes are those of ``torchvision.models.segmentation.fcn_resnet50``, so its weights load.

    Args:
        bands: of the input.
        classes: of the output.
        auxiliary: whether to hold the second head on the third stage, which only training uses.
        width: multiple of the channels of the ResNet's stages.
    """

    def __init__(self, bands: int, classes: int, *, auxiliary: bool = False, width: float = 1.0) -> None:
        super().__init__(50, bands, classes, auxiliary=auxiliary, width=width)


class FCNResNet101(_FCNResNet):
    """Fully convolutional network of Long et al. on a ResNet-101 whose last two stages are dilated instead of strided.

    Layer names and shapes are those of ``torchvision.models.segmentation.fcn_resnet101``, so its weights load.

    Args:
        bands: of the input.
        classes: of the output.
        auxiliary: whether to hold the second head on the third stage, which only training uses.
        width: multiple of the channels of the ResNet's stages.
    """

    def __init__(self, bands: int, classes: int, *, auxiliary: bool = False, width: float = 1.0) -> None:
        super().__init__(101, bands, classes, auxiliary=auxiliary, width=width)


class FCNResNet50Skip(nn.Module):
    """FCN with skips on a ResNet-50: 1x1 scores of the strides 8, 16 and 32, each resized bilinearly, and added.

    The skips are those of Long et al. 2015, section 4.2 and figure 3, without its learnt upsampling; the trunk is that of
    He et al. 2016, table 1, with torchvision's names, under ``backbone``.

    Args:
        bands: of the input.
        classes: of the output.
        width: multiple of the channels of the ResNet's stages.
    """

    stride = 32

    def __init__(self, bands: int, classes: int, *, width: float = 1.0) -> None:
        super().__init__()
        self.backbone = trunk(50, bands, ("layer2", "layer3", "layer4"), width=width)
        self.score = nn.ModuleDict({stage: LogitsConv2d(channels, classes, 1) for stage, channels in self.backbone.channels.items()})

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, K, H, W) of scaled pixels (N, B, H, W)."""
        stages = self.backbone(pixels)
        strides = {"layer2": 8, "layer3": 16, "layer4": 32}
        fine, middle, coarse = (enlarged(score(stages[stage]), strides[stage], pixels) for stage, score in self.score.items())
        return fine + middle + coarse
