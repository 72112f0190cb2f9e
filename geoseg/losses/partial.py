"""Cross-entropy for labels that stand for a set of allowed classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def partial_cross_entropy(logits: Tensor, allowed: Tensor, *, push: bool = False) -> Tensor:
    """Minus the log of the probability that the class is an allowed one; cross-entropy where one class is allowed.

    With several allowed classes the plain form raises whichever of them already leads: its gradient for an allowed class
    is ``-p_c * p_not / p_allowed``. With ``push`` the allowed logits of such pixels are constants, so that only the classes
    that are ruled out move, downwards.

    Args:
        logits: (..., K) float.
        allowed: (..., K) bool, at least one class of each pixel.
        push: whether a pixel with several allowed classes only pushes the others down.

    Returns:
        (...) float32 loss per pixel, at least 0; exactly 0 where all classes are allowed.
    """
    logits = logits.float()
    if push:
        several = allowed.sum(-1, keepdim=True) > 1
        logits = torch.where(allowed & several, logits.detach(), logits)
    return logits.logsumexp(-1) - logits.masked_fill(~allowed, float("-inf")).logsumexp(-1)


class PartialLabelLoss(nn.Module):
    """Mean of :func:`partial_cross_entropy` over labelled pixels, each weighted by its code.

    Args:
        allowed: (C, K) bool, the classes each label code allows; a code that allows none gives no loss.
        weights: (C,) float, of each code.
        push: see :func:`partial_cross_entropy`.
    """

    allowed: Tensor
    weights: Tensor

    def __init__(self, allowed: Tensor, weights: Tensor | None = None, *, push: bool = False) -> None:
        super().__init__()
        labelled = allowed.any(1).float()
        self.register_buffer("allowed", allowed, persistent=False)
        self.register_buffer("weights", labelled if weights is None else weights.float() * labelled, persistent=False)
        self.push = push

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted mean loss of a batch.

        Args:
            logits: (N, K, H, W) float.
            labels: (N, H, W) integer codes.

        Returns:
            float32 scalar; 0, with zero gradient, when nothing is labelled.
        """
        codes = labels.flatten().long()
        counted = torch.nonzero(self.weights[codes]).squeeze(1)
        codes = codes[counted]
        rows = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])[counted]
        weights = self.weights[codes]
        total: Tensor = (partial_cross_entropy(rows, self.allowed[codes], push=self.push) * weights).sum()
        return total / weights.sum().clamp(min=1e-6)


def balanced_weights(shares: Tensor, allowed: Tensor, *, power: float, ambiguous: float, limit: float = 20.0) -> Tensor:
    """Weights that let rare codes count.

    Args:
        shares: (C,) share of each code among labelled pixels.
        allowed: (C, K) bool.
        power: 0 leaves every pixel alike, 1 gives every code the same total.
        ambiguous: further factor for codes that allow several classes.
        limit: the largest weight.

    Returns:
        (C,) float32: ``(1 / (K * share)) ** power``; 0 for codes that allow nothing or never occur.
    """
    seen = allowed.any(1) & (shares > 0)
    weights = (1 / (allowed.shape[1] * shares.clamp(min=1e-9))).pow(power).clamp(max=limit)
    factor = torch.where(allowed.sum(1) > 1, ambiguous, 1.0)
    return (weights * factor * seen).float()
