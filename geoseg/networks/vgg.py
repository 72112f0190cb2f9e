"""The thirteen convolutions of VGG-16, as segmentation networks begin with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor, nn

from geoseg.errors import CardError
from geoseg.networks.stem import adapted

Module = TypeVar("Module", bound=nn.Module)

CHANNELS = (64, 128, 256, 512, 512)
DEPTHS = (2, 2, 3, 3, 3)


def scaled(channels: int, width: float) -> int:
    """Number of channels of a network of another width, at least 1."""
    return max(1, round(channels * width))


def features(
    bands: int,
    width: float = 1.0,
    *,
    pools: Sequence[nn.Module],
    dilations: Sequence[int] = (1, 1, 1, 1, 1),
    padded: bool = True,
    batch_norm: bool = False,
) -> nn.Sequential:
    """Configuration D of Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015, table 1.

    The layers have the numbers of torchvision's ``vgg16().features``, or ``vgg16_bn().features``, so that its weights load.

    Args:
        bands: of the input.
        width: factor of all channel numbers.
        pools: what follows each of the five stages.
        dilations: of the convolutions of each stage.
        padded: whether the maps keep their size in convolutions; otherwise they lose the rim that looks outside.
        batch_norm: whether a batch norm follows each convolution.
    """
    layers: list[nn.Module] = []
    before = bands
    for channels, depth, pool, dilation in zip(CHANNELS, DEPTHS, pools, dilations, strict=True):
        for _ in range(depth):
            after = scaled(channels, width)
            layers.append(nn.Conv2d(before, after, 3, padding=dilation if padded else 0, dilation=dilation))
            layers += [nn.BatchNorm2d(after)] if batch_norm else []
            layers.append(nn.ReLU(inplace=True))
            before = after
        layers.append(pool)
    return initialised(nn.Sequential(*layers))


def initialised(module: Module) -> Module:
    """The module, with convolutions drawn after He et al. 2015, "Delving Deep into Rectifiers", section 2.2, without bias at first."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def load_layers(layers: nn.Module, state: Mapping[str, Tensor], *, prefix: str = "", first: str) -> None:
    """Copy those tensors of a state dict of torchvision that a part of its network has.

    Args:
        layers: to copy to.
        state: to copy from.
        prefix: of the names there.
        first: the weight of the first convolution, which is :func:`adapted <geoseg.networks.stem.adapted>` to the number of bands.

    Raises:
        CardError: if a tensor is missing or of another shape.
    """
    for name, own in layers.state_dict().items():
        given = taken(state, prefix + name)
        fill(own, adapted(given, own.shape[1]) if name == first else given, prefix + name)


def load_features(layers: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy the convolutions of torchvision's ``vgg16`` or ``vgg16_bn`` into those of :func:`features`.

    Raises:
        CardError: if a tensor is missing or of another shape.
    """
    load_layers(layers, state, prefix="features.", first="0.weight")


def taken(state: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor of a state dict.

    Raises:
        CardError: if it is not there.
    """
    if name not in state:
        raise CardError(
            f"the weights have no {name!r}; expected a state dict of torchvision, which begins with {next(iter(state), 'nothing')!r}"
        )
    return state[name]


def fill(own: Tensor, given: Tensor, name: str) -> None:
    """Copy a tensor over another of the same shape.

    Raises:
        CardError: if the shapes differ.
    """
    if own.shape != given.shape:
        raise CardError(f"{name} has shape {tuple(given.shape)}, expected {tuple(own.shape)}; build the network with width 1")
    own.copy_(given)


def load_dense(layer: nn.Conv2d, state: Mapping[str, Tensor], name: str, *, keep: tuple[int, int, int] = (1, 1, 1)) -> None:
    """Copy a fully connected layer of VGG-16 into the convolution that computes the same at one place.

    Args:
        layer: convolution of kernel 7 x 7 or 1 x 1, or of every third of the 7 taps.
        state: of torchvision's ``vgg16``.
        name: ``classifier.0`` (fc6) or ``classifier.3`` (fc7).
        keep: keeps every so many outputs, inputs and taps (decimation).

    Raises:
        CardError: if a tensor is missing or of another shape.
    """
    outputs, inputs, taps = keep
    weight, bias = taken(state, f"{name}.weight"), taken(state, f"{name}.bias")
    side = 7 if name == "classifier.0" else 1
    kernels = weight.reshape(len(weight), -1, side, side)[::outputs, ::inputs, ::taps, ::taps]
    fill(layer.weight.data, kernels, f"{name}.weight")
    if layer.bias is not None:
        fill(layer.bias.data, bias[::outputs], f"{name}.bias")
