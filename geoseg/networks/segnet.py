"""SegNet: VGG-16 and its mirror image, which puts values back where pooling found them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from geoseg.networks import vgg
from geoseg.networks.logits import LogitsConv2d


class SegNet(nn.Module):
    """SegNet of Badrinarayanan, Kendall and Cipolla 2017, section 3 and figures 2 and 3.

    Encoder: the thirteen convolutions of VGG-16, each with batch norm. Decoder: the same backwards; where the encoder pooled, the values
    go to the places from which the encoder took its maxima, and all else is zero. The last convolution scores the classes.

    Args:
        bands: of the input.
        classes: of the output.
        width: factor of all channel numbers of the paper.
    """

    stride = 32
    trunk = "vgg16_bn"

    def __init__(self, bands: int, classes: int, *, width: float = 1.0) -> None:
        super().__init__()
        pools = [nn.MaxPool2d(2, ceil_mode=True, return_indices=True) for _ in vgg.DEPTHS]
        self.features = vgg.features(bands, width, pools=pools, batch_norm=True)
        channels = [vgg.scaled(number, width) for number in vgg.CHANNELS]
        self.decoder = nn.ModuleList(
            vgg.initialised(_decoding(channels[stage], channels[max(stage - 1, 0)], depth - (stage == 0)))
            for stage, depth in reversed([*enumerate(vgg.DEPTHS)])
        )
        self.score = vgg.initialised(LogitsConv2d(channels[0], classes, 3, padding=1))

    def load_trunk(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of torchvision's ``vgg16_bn``; its fully connected layers are not needed.

        Raises:
            CardError: if they do not fit.
        """
        vgg.load_features(self.features, state)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, K, H, W) of scaled pixels (N, B, H, W)."""
        found, features = [], pixels
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                size = features.shape
                features, places = layer(features)
                found.append((places, size))
            else:
                features = layer(features)
        for block in self.decoder:
            places, size = found.pop()
            features = block(functional.max_unpool2d(features, places, [2, 2], [2, 2], output_size=[*size[-2:]]))
        answer: Tensor = self.score(features)
        return answer


def _decoding(before: int, after: int, depth: int) -> nn.Sequential:
    """Convolutions of one stage; the last one changes the number of channels."""
    layers: list[nn.Module] = []
    for channels in [before] * (depth - 1) + [after]:
        layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
