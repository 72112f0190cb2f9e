"""One door to every architecture."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol, cast

import segmentation_models_pytorch as smp
import timm
from torch import Tensor, nn

from geoseg.errors import CardError
from geoseg.networks.fcn import FCNResNet50
from geoseg.networks.logits import LogitsConv2d
from geoseg.options import nearest

_LIBRARY: dict[str, type[nn.Module]] = {
    "deeplabv3": smp.DeepLabV3,
    "deeplabv3plus": smp.DeepLabV3Plus,
    "dpt": smp.DPT,
    "fpn": smp.FPN,
    "linknet": smp.Linknet,
    "manet": smp.MAnet,
    "pan": smp.PAN,
    "pspnet": smp.PSPNet,
    "segformer": smp.Segformer,
    "unet": smp.Unet,
    "unetplusplus": smp.UnetPlusPlus,
    "upernet": smp.UPerNet,
}
_OURS: dict[str, Callable[..., nn.Module]] = {"fcn_resnet50": FCNResNet50}
_FIXED = {"self", "encoder_weights", "in_channels", "bands", "classes", "activation", "aux_params", "kwargs"}
_PATCH_DEFAULTS = {"dynamic_img_size": True}


class Network(Protocol):
    """What every network here offers; ``H`` and ``W`` are multiples of ``stride``."""

    stride: int

    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits (N, K, H, W) of scaled pixels (N, B, H, W)."""


def names() -> tuple[str, ...]:
    """Every architecture that :func:`build` knows."""
    return tuple(sorted({*_LIBRARY, *_OURS}))


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
    name = architecture.lower()
    maker: Callable[..., nn.Module] | None = _LIBRARY.get(name) or _OURS.get(name)
    if maker is None:
        raise CardError(f"unknown architecture {architecture!r}; {nearest(name, names())}")
    known = set(inspect.signature(maker).parameters) - _FIXED
    for option in options.keys() - known:
        raise CardError(f"architecture {name!r} has no option {option!r}; {nearest(option, known)}")
    _check_encoder(options.get("encoder_name"))
    try:
        return _made(name, maker, bands, classes, options)
    except (ValueError, TypeError, KeyError, IndexError, AssertionError, RuntimeError) as error:
        raise CardError(f"architecture {name!r} cannot be built with {options}: {error}") from error


def _made(name: str, maker: Callable[..., nn.Module], bands: int, classes: int, options: dict[str, Any]) -> nn.Module:
    if name in _OURS:
        return maker(bands=bands, classes=classes, **options)
    extra = _PATCH_DEFAULTS if name == "dpt" else {}
    network = maker(encoder_weights=None, in_channels=bands, classes=classes, **extra, **options)
    _answer_in_float32(cast(Any, network.segmentation_head))
    network.stride = cast(Any, network.encoder).output_stride
    return network


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
