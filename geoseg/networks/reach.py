"""How far a network looks."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

FARTHEST = 4096
_SIDE = 32
_SHORTEST = 512


def reach(network: nn.Module, bands: int) -> int | None:
    """The largest distance, in rows or columns, at which a pixel of the input can change a pixel of the answer; in pixels.

    Found by asking: what is computed from not-a-number is not a number, whatever the weights. So the network sees a strip one end of
    which is not a number, for as many pixels as one and as the stride, and all between, and its answer tells how far that spreads; to
    the right, up, to the left and down.

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
    while (first := _spread(network, bands, turns, 1, length)) == length - 1:
        if length == FARTHEST:
            return None
        length *= 2
    return max(first, *(_spread(network, bands, turns, count, length + stride) for count in range(2, stride + 1)))


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
