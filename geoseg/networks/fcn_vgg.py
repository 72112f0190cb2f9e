"""FCN-32s, FCN-16s and FCN-8s: VGG-16 turned convolutional."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from geoseg.networks import vgg
from geoseg.networks.logits import LogitsConv2d
from geoseg.networks.upsample import BilinearUpsampling


class FCN32s(nn.Module):
    """FCN-32s of Long, Shelhamer and Darrell 2015, section 4.1 and figure 3.

    The fully connected layers of VGG-16 are convolutions of 7 x 7 and 1 x 1, a 1 x 1 convolution scores the classes, and a fixed
    bilinear transposed convolution brings the scores to the size of the pixels. Layers are called as in the authors' Caffe model.

    The authors pad the input by 100 pixels, since their fc6 does not pad, and crop the answer. Here fc6 pads by 3, and a map whose size is
    odd is pooled with a cell that reaches outside, as in Caffe. Away from the borders that is the same function on pooling cells that
    begin at pixel 0 instead of pixel -99; at the borders, less of what is seen is padding.

    Args:
        bands: of the input.
        classes: of the output.
        width: factor of all channel numbers of the paper.
        dropout: share of fc6 and fc7 that is dropped in training.
    """

    stride = 32
    trunk = "vgg16"

    def __init__(self, bands: int, classes: int, *, width: float = 1.0, dropout: float = 0.5) -> None:
        super().__init__()
        dense = vgg.scaled(4096, width)
        self.features = vgg.features(bands, width, pools=[nn.MaxPool2d(2, ceil_mode=True) for _ in range(5)])
        self.fc6 = vgg.initialised(nn.Conv2d(vgg.scaled(512, width), dense, 7, padding=3))
        self.fc7 = vgg.initialised(nn.Conv2d(dense, dense, 1))
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout(dropout)
        self.score_fr = _score(dense, classes)
        self._add_upsampling(classes, width)

    def _add_upsampling(self, classes: int, width: float) -> None:  # noqa: ARG002 the others need the width
        self.upscore = BilinearUpsampling(classes, 32, learned=False)

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
        pooled, features = [], pixels
        for layer in self.features:
            features = layer(features)
            if isinstance(layer, nn.MaxPool2d):
                pooled.append(features)
        features = self.dropout(self.relu(self.fc6(features)))
        features = self.dropout(self.relu(self.fc7(features)))
        return self._upsample(self.score_fr(features), pooled[2], pooled[3], [*pixels.shape])

    def _upsample(self, scores: Tensor, pool3: Tensor, pool4: Tensor, size: list[int]) -> Tensor:  # noqa: ARG002 the others need the pools
        answer: Tensor = self.upscore(scores, size)
        return answer


class FCN16s(FCN32s):
    """FCN-16s of Long, Shelhamer and Darrell 2015, section 4.2 and figure 3: scores of pool4 are added.

    The upsampling between begins bilinear and learns. Everything else is as in FCN-32s, :class:`FCN32s`.

    Args:
        bands: of the input.
        classes: of the output.
        width: factor of all channel numbers of the paper.
        dropout: share of fc6 and fc7 that is dropped in training.
    """

    def _add_upsampling(self, classes: int, width: float) -> None:
        self.upscore2 = BilinearUpsampling(classes, 2, learned=True)
        self.score_pool4 = _score(vgg.scaled(512, width), classes)
        self.upscore16 = BilinearUpsampling(classes, 16, learned=False)

    def _upsample(self, scores: Tensor, pool3: Tensor, pool4: Tensor, size: list[int]) -> Tensor:  # noqa: ARG002
        answer: Tensor = self.upscore16(self.upscore2(scores, [*pool4.shape]) + self.score_pool4(pool4), size)
        return answer


class FCN8s(FCN32s):
    """FCN-8s of Long, Shelhamer and Darrell 2015, section 4.2 and figure 3: scores of pool4 and pool3 are added.

    The upsampling between begins bilinear and learns. Everything else is as in FCN-32s, :class:`FCN32s`.

    Args:
        bands: of the input.
        classes: of the output.
        width: factor of all channel numbers of the paper.
        dropout: share of fc6 and fc7 that is dropped in training.
    """

    def _add_upsampling(self, classes: int, width: float) -> None:
        self.upscore2 = BilinearUpsampling(classes, 2, learned=True)
        self.score_pool4 = _score(vgg.scaled(512, width), classes)
        self.upscore_pool4 = BilinearUpsampling(classes, 2, learned=True)
        self.score_pool3 = _score(vgg.scaled(256, width), classes)
        self.upscore8 = BilinearUpsampling(classes, 8, learned=False)

    def _upsample(self, scores: Tensor, pool3: Tensor, pool4: Tensor, size: list[int]) -> Tensor:
        scores = self.upscore2(scores, [*pool4.shape]) + self.score_pool4(pool4)
        scores = self.upscore_pool4(scores, [*pool3.shape]) + self.score_pool3(pool3)
        answer: Tensor = self.upscore8(scores, size)
        return answer


def _score(channels: int, classes: int) -> LogitsConv2d:
    """A layer that scores classes, zero at first (sections 4.2 and 4.3)."""
    layer = LogitsConv2d(channels, classes, 1)
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
