"""RefineNet: four paths of a ResNet, each refined by the coarser one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from geoseg.networks.logits import LogitsConv2d
from geoseg.networks.resnet import enlarged, trunk


class ResidualConvUnit(nn.Module):
    """Two 3x3 convolutions, a ReLU before each, beside the identity: a residual unit without batch norm (figure 3 (b)).

    Args:
        channels: of input and output, (N, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same shape."""
        residual: Tensor = self.conv2(self.conv1(features.relu()).relu())
        return features + residual


class MultiResolutionFusion(nn.Module):
    """3x3 convolutions to the fewest channels of both paths, upsampling to the finer one, and the sum (figure 3 (c)).

    Args:
        channels: of the path, and of the one of half its resolution.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(each, min(channels), 3, padding=1, bias=False) for each in channels)

    def forward(self, paths: Sequence[Tensor]) -> Tensor:
        """One map of the finer path's size."""
        fine, coarse = (conv(path) for conv, path in zip(self.convs, paths, strict=True))
        fused: Tensor = fine + enlarged(coarse, 2, fine)
        return fused


class ChainedResidualPooling(nn.Module):
    """A ReLU, then blocks of 5x5 max-pooling and a 3x3 convolution, each on the result of the one before, all added (figure 3 (d)).

    Args:
        channels: of input and output, (N, C, H, W).
        blocks: how many.
    """

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(blocks))

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same shape."""
        pooled = total = features.relu()
        for conv in self.convs:
            pooled = conv(self.pool(pooled))
            total = total + pooled
        return total


class RefineNetBlock(nn.Module):
    """Residual conv units on each path, fusion, chained residual pooling, and one more unit (figure 3 (a)).

    Args:
        channels: of the path, and, where there is one, of that of half its resolution; the output has the fewer of them.
        pooling_blocks: of the chained residual pooling.
    """

    def __init__(self, channels: Sequence[int], pooling_blocks: int) -> None:
        super().__init__()
        self.adapt = nn.ModuleList(nn.Sequential(ResidualConvUnit(each), ResidualConvUnit(each)) for each in channels)
        self.fusion = MultiResolutionFusion(channels) if len(channels) > 1 else None
        self.pooling = ChainedResidualPooling(min(channels), pooling_blocks)
        self.output = ResidualConvUnit(min(channels))

    def forward(self, paths: Sequence[Tensor]) -> Tensor:
        """One map of the first path's size."""
        adapted = [adapt(path) for adapt, path in zip(self.adapt, paths, strict=True)]
        fused = adapted[0] if self.fusion is None else self.fusion(adapted)
        refined: Tensor = self.output(self.pooling(fused))
        return refined


class RefineNet(nn.Module):
    """Four RefineNet blocks in a cascade, from stride 32 to stride 4 of a ResNet.

    Lin, Milan, Shen, Reid 2017, figure 2 (c): RefineNet-4 works on the last stage with 512 channels, each following block with
    256 on the stage before and the block above. The two additional units before the scores are those of section 3.2, end. A 3x3
    convolution brings each stage to these channels, and biases are where Nekrasov's PyTorch implementation has them
    (github.com/DrSleep/refinenet-pytorch).

    Args:
        bands: of the input.
        classes: of the output.
        depth: of the ResNet: 50, 101 or 152.
        pooling_blocks: of each chained residual pooling: 2 in the paper (section 3.2), 4 in Nekrasov's implementation.
        width: multiple of all channels but the stem's.
    """

    stride = 32

    def __init__(self, bands: int, classes: int, *, depth: int = 101, pooling_blocks: int = 2, width: float = 1.0) -> None:
        super().__init__()
        self.backbone = trunk(depth, bands, ("layer1", "layer2", "layer3", "layer4"), width=width)
        most, many = max(1, round(512 * width)), max(1, round(256 * width))
        self.reduction = nn.ModuleList(
            nn.Conv2d(channels, most if stage == "layer4" else many, 3, padding=1, bias=False)
            for stage, channels in self.backbone.channels.items()
        )
        self.refinenet4 = RefineNetBlock([most], pooling_blocks)
        self.refinenet3 = RefineNetBlock([many, most], pooling_blocks)
        self.refinenet2 = RefineNetBlock([many, many], pooling_blocks)
        self.refinenet1 = RefineNetBlock([many, many], pooling_blocks)
        self.output = nn.Sequential(ResidualConvUnit(many), ResidualConvUnit(many))
        self.classifier = LogitsConv2d(many, classes, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, K, H, W) of scaled pixels (N, B, H, W)."""
        stages = self.backbone(pixels).values()
        path1, path2, path3, path4 = (reduction(stage) for reduction, stage in zip(self.reduction, stages, strict=True))
        refined = self.refinenet4([path4])
        for block, path in ((self.refinenet3, path3), (self.refinenet2, path2), (self.refinenet1, path1)):
            refined = block([path, refined])
        return enlarged(self.classifier(self.output(refined)), 4, pixels)
