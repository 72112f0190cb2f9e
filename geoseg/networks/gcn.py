"""Global convolutional network: large kernels on the stages of a ResNet."""

from __future__ import annotations

from torch import Tensor, nn

from geoseg.networks.logits import LogitsConv2d
from geoseg.networks.resnet import trunk
from geoseg.networks.upsample import BilinearUpsampling


class GlobalConvolution(nn.Module):
    """A dense k x k connection of few parameters: k x 1 then 1 x k, plus 1 x k then k x 1, nothing between (figure 2 (B)).

    Args:
        channels: of the input.
        classes: of the output.
        size: k, odd.
    """

    def __init__(self, channels: int, classes: int, size: int) -> None:
        super().__init__()
        if size % 2 == 0:
            raise ValueError(f"size {size} of the large kernels is even, expected an odd number")
        tall, tall_rim, wide, wide_rim = (size, 1), (size // 2, 0), (1, size), (0, size // 2)
        self.left = nn.Sequential(
            nn.Conv2d(channels, classes, tall, padding=tall_rim), LogitsConv2d(classes, classes, wide, padding=wide_rim)
        )
        self.right = nn.Sequential(
            nn.Conv2d(channels, classes, wide, padding=wide_rim), LogitsConv2d(classes, classes, tall, padding=tall_rim)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Scores (N, K, H, W) of features (N, C, H, W)."""
        scores: Tensor = self.left(features) + self.right(features)
        return scores


class BoundaryRefinement(nn.Module):
    """A residual branch of two 3x3 convolutions with a ReLU between (figure 2 (C)).

    Args:
        classes: channels of scores and result, (N, K, H, W).
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = LogitsConv2d(classes, classes, 3, padding=1)
        self.conv2 = LogitsConv2d(classes, classes, 3, padding=1)

    def forward(self, scores: Tensor) -> Tensor:
        """Scores of the same shape."""
        residual: Tensor = self.conv2(self.conv1(scores).relu())
        return scores + residual


class GCN(nn.Module):
    """Scores of each stage of a ResNet by large kernels, refined, and added from coarse to fine.

    Peng, Zhang, Yu, Luo, Sun 2017, figure 2 (A): global convolution and boundary refinement on res-2 to res-5; scores are
    upsampled by deconvolution (bilinear at first), added to those of the next finer stage and refined again, up to the size of the input.

    Args:
        bands: of the input.
        classes: of the output; all score maps have as many channels.
        depth: of the ResNet: 50, 101 or 152 (the paper's, section 4).
        size: of the large kernels, odd; 15 is the paper's best (table 1).
        width: multiple of the channels of the ResNet's stages.
    """

    stride = 32

    def __init__(self, bands: int, classes: int, *, depth: int = 152, size: int = 15, width: float = 1.0) -> None:
        super().__init__()
        self.backbone = trunk(depth, bands, ("layer1", "layer2", "layer3", "layer4"), width=width)
        self.gcn = nn.ModuleDict({stage: GlobalConvolution(channels, classes, size) for stage, channels in self.backbone.channels.items()})
        self.refinement = nn.ModuleDict({stage: BoundaryRefinement(classes) for stage in self.gcn})
        self.deconvolution = nn.ModuleList(BilinearUpsampling(classes, 2, learned=True) for _ in range(5))
        self.fused_refinement = nn.ModuleList(BoundaryRefinement(classes) for _ in range(5))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, K, H, W) of scaled pixels (N, B, H, W)."""
        stages = self.backbone(pixels)
        layer1, layer2, layer3, scores = (self.refinement[stage](gcn(stages[stage])) for stage, gcn in self.gcn.items())
        height, width = pixels.shape[-2:]
        sizes = [layer3.shape[-2:], layer2.shape[-2:], layer1.shape[-2:], ((height + 1) // 2, (width + 1) // 2), (height, width)]
        finer: list[Tensor | None] = [layer3, layer2, layer1, None, None]
        for up, refine, (rows, columns), added in zip(self.deconvolution, self.fused_refinement, sizes, finer, strict=True):
            scores = up(scores, [rows, columns])
            scores = refine(scores if added is None else scores + added)
        answer: Tensor = scores
        return answer
