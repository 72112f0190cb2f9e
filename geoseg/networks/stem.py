"""The first convolution, for any number of bands."""

from __future__ import annotations

import torch
from torch import Tensor


def adapted(weight: Tensor, bands: int) -> Tensor:
    """The first convolution for another number of bands.

    Bands that were there before keep their kernels, further bands get the mean kernel; fewer bands than before all get the
    mean kernel. All are scaled by the ratio of the numbers, so that the kernels of all bands add to the same as before: a
    grey image gives the same activations in any number of bands.

    Args:
        weight: (O, I, h, w) kernels.
        bands: to make kernels for.

    Returns:
        (O, bands, h, w) kernels.
    """
    before = weight.shape[1]
    mean = weight.mean(1, keepdim=True)
    kept = weight if bands >= before else weight[:, :0]
    return torch.cat([kept, mean.expand(-1, bands - kept.shape[1], -1, -1)], 1) * (before / bands)
