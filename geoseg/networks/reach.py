"""How far a network looks."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

FARTHEST = 4096
_SIDE = 32
_SHORTEST = 256

KNOWN: dict[str, int | None] = {
    "deeplabv1": 225,
    "deeplabv2": 685,
    "deeplabv3": None,
    "deeplabv3_resnet101": None,
    "deeplabv3_resnet50": None,
    "deeplabv3plus": None,
    "dilated": 461,
    "dpt": None,
    "fcn16s": 241,
    "fcn32s": 233,
    "fcn8s": 245,
    "fcn_resnet101": 504,
    "fcn_resnet50": 232,
    "fcn_resnet50_skip": 260,
    "fpn": None,
    "gcn": 1137,
    "linknet": 511,
    "manet": None,
    "maskrcnn_resnet50_fpn": 372,
    "maskrcnn_resnet50_fpn_v2": 436,
    "pan": None,
    "pspnet": None,
    "refinenet": 1486,
    "segformer": 498,
    "segnet": 211,
    "unet": 543,
    "unet_original": 107,
    "unetplusplus": 543,
    "upernet": None,
}
"""What :func:`reach` says of each architecture with its default options, of Mask R-CNN's proposals; the tests ask it again."""


def reach(network: nn.Module, bands: int) -> int | None:
    """The largest distance, in rows or columns, at which a pixel of the input can change a pixel of the answer; in pixels.

    Found by asking: what is computed from not-a-number is not a number, whatever the weights. So the network sees a strip one end of
    which is not a number, and its answer tells how far that spreads: to the right, up, to the left and down, from wherever in a cell of
    the stride the end is. An interpolation that gives a pixel the weight zero counts as looking there, so that the truth may be one less.

    Args:
        network: in evaluation mode, float32, with its ``stride``.
        bands: channels of its input.

    Returns:
        pixels; None where it spreads farther than 4096, as it does with global pooling or attention.
    """
    found = [_towards(network, bands, turns) for turns in range(4)]
    return None if None in found else max(cast(list[int], found))


def _towards(network: nn.Module, bands: int, turns: int) -> int | None:
    stride, length = cast(int, network.stride), _SHORTEST
    while _spread(network, bands, turns, stride, length) == length - stride:
        if length == FARTHEST:
            return None
        length *= 4

    @cache
    def spread(count: int) -> int:
        return _spread(network, bands, turns, count, length)

    best, spans = max(spread(1), spread(stride)), [(1, stride)]
    while spans:
        low, high = spans.pop()
        if spread(high) + high - low - 1 > best:  # where the front lies never falls as the end grows, so that none between can be farther
            middle = (low + high) // 2
            best = max(best, spread(middle))
            spans += [(low, middle), (middle, high)]
    return best


def _spread(network: nn.Module, bands: int, turns: int, count: int, length: int) -> int:
    """How far the first ``count`` columns of a strip spread, when it is rotated by some quarter turns, in pixels."""
    strip = torch.zeros(1, bands, _SIDE, length)
    strip[..., :count] = torch.nan
    with torch.inference_mode(), _Unpooling():
        answer = torch.rot90(network(torch.rot90(strip, turns, (2, 3))), -turns, (2, 3))
    return int(torch.nonzero(answer.isnan().any(1).any(1)[0]).max()) - (count - 1)


class _Unpooling(TorchFunctionMode):
    """Lets a value go to every place of its pooling cell: which of them it is depends on the whole cell."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not functional.max_unpool2d:
            return function(*args, **(kwargs or {}))
        return functional.interpolate(args[0], size=(kwargs or {})["output_size"], mode="nearest")
