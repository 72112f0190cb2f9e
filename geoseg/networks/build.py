"""One door to every architecture."""

from __future__ import annotations

from typing import Any, Protocol, cast

import segmentation_models_pytorch as smp
import timm
from torch import Tensor, nn

from geoseg.errors import CardError
from geoseg.networks.library import of_any_size
from geoseg.networks.logits import LogitsConv2d
from geoseg.networks.registry import ARCHITECTURES, Architecture
from geoseg.options import nearest

_PATCH_DEFAULTS = {"dynamic_img_size": True}


class Network(Protocol):
    """What every network here offers, for any ``H`` and ``W`` of at least 32."""

    stride: int

    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits (N, K, H, W) of scaled pixels (N, B, H, W)."""


def names() -> tuple[str, ...]:
    """Every architecture that :func:`build` knows."""
    return tuple(ARCHITECTURES)


def find(name: str) -> Architecture:
    """The architecture of a name, in any case.

    Raises:
        CardError: if it is unknown.
    """
    try:
        return ARCHITECTURES[name.lower()]
    except KeyError:
        raise CardError(f"unknown architecture {name!r}; {nearest(name.lower(), names())}") from None


def build(architecture: str, bands: int, classes: int, **options: Any) -> nn.Module:
    """Make a network with random weights; nothing is downloaded.

    Args:
        architecture: one of :func:`names`, in any case.
        bands: channels of the input.
        classes: channels of the output.
        options: keyword arguments of the architecture, e.g. ``encoder_name``.

    Returns:
        module with attribute ``stride``, that maps (N, B, H, W) to logits (N, K, H, W), float32 even under autocast.

    Raises:
        CardError: if the architecture, an option or the encoder is unknown, or the options do not fit together.
    """
    found = find(architecture)
    for option in options.keys() - found.options.keys():
        raise CardError(f"architecture {found.name!r} has no option {option!r}; {nearest(option, found.options)}")
    _check_encoder(options.get("encoder_name"))
    try:
        return _of_library(found, bands, classes, options) if found.kind == "smp" else found.maker(bands=bands, classes=classes, **options)
    except (ValueError, TypeError, KeyError, IndexError, AssertionError, RuntimeError) as error:
        raise CardError(f"architecture {found.name!r} cannot be built with {options}: {error}") from error


def _of_library(found: Architecture, bands: int, classes: int, options: dict[str, Any]) -> nn.Module:
    extra = _PATCH_DEFAULTS if found.name == "dpt" else {}
    network: Any = of_any_size(cast(Any, found.maker))(encoder_weights=None, in_channels=bands, classes=classes, **extra, **options)
    _answer_in_float32(network.segmentation_head)
    network.stride = network.encoder.output_stride
    return cast(nn.Module, network)


def _answer_in_float32(head: Any) -> None:
    """Replace the last convolution of a head of the library; names of parameters stay."""
    layers: nn.Sequential = head if isinstance(head, nn.Sequential) else head.head
    last = max(index for index, layer in enumerate(layers) if isinstance(layer, nn.Conv2d))
    layers[last] = LogitsConv2d.of(cast(nn.Conv2d, layers[last]))


def _check_encoder(encoder: Any) -> None:
    if encoder is None:
        return
    if isinstance(encoder, str) and encoder.startswith("tu-"):
        if not timm.is_model(encoder[3:]):
            raise CardError(f"unknown encoder {encoder!r}; {nearest(encoder, [f'tu-{name}' for name in timm.list_models()])}")
    elif encoder not in smp.encoders.encoders:
        raise CardError(f"unknown encoder {encoder!r}; {nearest(str(encoder), smp.encoders.encoders)}")
