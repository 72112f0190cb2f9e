"""What lies beyond the border, as in a mirror."""

from __future__ import annotations

import torch
from torch import Tensor


def mirrored(pixels: Tensor, margin: int, below: int = 0, right: int = 0) -> Tensor:
    """Pixels (N, B, margin + H + margin + below, margin + W + margin + right) that go on beyond the border as if mirrored in it.

    The pixels at the border are not repeated. A margin larger than the image is mirrored back and forth.

    Args:
        pixels: (N, B, H, W).
        margin: at each side, pixels.
        below: more of it below.
        right: more of it at the right.
    """
    for axis, more in ((2, below), (3, right)):
        length = pixels.shape[axis]
        period = max(2 * (length - 1), 1)
        place = torch.arange(-margin, length + margin + more, device=pixels.device).remainder(period)
        pixels = pixels.index_select(axis, torch.minimum(place, period - place))
    return pixels
