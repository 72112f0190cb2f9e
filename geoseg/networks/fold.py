"""Batch norms into the convolutions before them."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_SIDE = 128
_TOLERANCE = 1e-3


def fold_batch_norms(network: nn.Module, bands: int) -> nn.Module:
    """The same function with less to do: a batch norm scales and shifts, and so can the convolution whose result it takes.

    The pairs are found by watching one pass, not by name, so any network will do. A convolution or a batch norm that is
    called more than once stays as it is, and so does a network whose answer would change (one that also uses the result of
    such a convolution elsewhere). Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", section 3.2.

    Args:
        network: in evaluation mode, float32, on the CPU; answers (1, bands, 128, 128).
        bands: channels of its input.

    Returns:
        A folded copy, or the network itself where nothing can be folded.
    """
    pixels = torch.randn(1, bands, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    folded = deepcopy(network)
    with torch.no_grad():
        for conv, name, norm in _pairs(folded, pixels):
            fused = fuse_conv_bn_eval(conv, norm)
            conv.weight, conv.bias = fused.weight, fused.bias
            folded.set_submodule(name, nn.Identity())
        before, after = network(pixels), folded(pixels)
    scale = before.abs().max().clamp_min(1e-6)
    return folded if bool(((after - before).abs().max() <= _TOLERANCE * scale).item()) else network


def _pairs(network: nn.Module, pixels: Tensor) -> list[tuple[nn.Conv2d, str, nn.BatchNorm2d]]:
    """Convolutions whose result a batch norm takes, in one pass."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # holds the tensors, so that no two have the same address
    pairs: list[tuple[nn.Conv2d, str, nn.BatchNorm2d]] = []
    calls = Counter[int]()
    names = {module: name for name, module in network.named_modules()}

    def made_by(conv: Any, _: Any, result: Tensor) -> None:
        made[id(result)] = (conv, result)
        calls[id(conv)] += 1

    def taken_by(norm: Any, given: tuple[Tensor, ...]) -> None:
        calls[id(norm)] += 1
        if id(given[0]) in made and norm.track_running_stats:
            pairs.append((made[id(given[0])][0], names[norm], norm))

    hooks = [module.register_forward_hook(made_by) for module in network.modules() if type(module) is nn.Conv2d]
    hooks += [module.register_forward_pre_hook(taken_by) for module in network.modules() if type(module) is nn.BatchNorm2d]
    try:
        network(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in pairs if calls[id(pair[0])] == calls[id(pair[2])] == 1]
