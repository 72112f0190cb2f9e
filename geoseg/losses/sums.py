"""Weighted sums of losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import torch
from segmentation_models_pytorch import losses as library
from torch import Tensor, nn
from torch.nn import functional

from geoseg.losses.borders import border_weights
from geoseg.losses.partial import PartialLabelLoss

Term: TypeAlias = Literal["partial", "focal", "dice", "jaccard", "tversky", "lovasz", "ohem", "border"]
_HARDEST = 0.25


class SummedLoss(nn.Module):
    """The partial-label loss and losses of pixels that can have one class only.

    The terms beside ``partial`` are those of segmentation-models-pytorch in their multi-class form, over the pixels of a batch whose
    label allows exactly one class: ``focal`` (Lin et al. 2017, arXiv:1708.02002, each class against the rest, their mean), ``dice``
    (Milletari et al. 2016, arXiv:1606.04797), ``jaccard``, ``tversky`` (Salehi et al. 2017, arXiv:1706.05721, with 0.3 for false positives
    and 0.7 for false negatives), ``lovasz`` (Berman et al. 2018, arXiv:1705.08790); and ``ohem``, cross-entropy of the quarter of those
    pixels at which it is largest (Shrivastava et al. 2016, arXiv:1604.03540); and ``border``, cross-entropy weighted as in U-Net, by the
    weights of ``partial`` plus :func:`geoseg.losses.border_weights`, over the sum of the former.

    Args:
        partial: the loss of all labelled pixels.
        terms: weight of each term; ``partial`` may be left out.
    """

    def __init__(self, partial: PartialLabelLoss, terms: Mapping[Term, float]) -> None:
        super().__init__()
        self.partial, self.terms = partial, dict(terms)
        single = torch.where(partial.allowed.sum(1) == 1, partial.allowed.float().argmax(1), -1)
        self.register_buffer("single", single, persistent=False)
        self.losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "focal": library.FocalLoss("multiclass"),
            "dice": library.DiceLoss("multiclass"),
            "jaccard": library.JaccardLoss("multiclass"),
            "tversky": library.TverskyLoss("multiclass", alpha=0.3, beta=0.7),
            "lovasz": library.LovaszLoss("multiclass"),
            "ohem": _hardest,
        }

    @property
    def allowed(self) -> Tensor:
        """(C, K) bool, the classes each label code allows."""
        return self.partial.allowed

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted sum for a batch.

        Args:
            logits: (N, K, H, W) float.
            labels: (N, H, W) integer codes.

        Returns:
            float32 scalar; 0, with zero gradient, when nothing is labelled.
        """
        total: Tensor = logits.float().sum() * 0
        if self.terms.get("partial"):
            total = total + self.terms["partial"] * self.partial(logits, labels)
        classes = self.single[labels.flatten().long()]  # type: ignore[index]
        counted = torch.nonzero(classes >= 0).squeeze(1)
        if len(counted):
            rows = logits.float().permute(1, 0, 2, 3).flatten(1)[:, counted]
            for name, weight in self.terms.items():
                if name == "border":
                    total = total + weight * self._bordered(rows, classes, counted, labels)
                elif name != "partial" and weight:
                    total = total + weight * self.losses[name](rows[None, :, :, None], classes[counted][None, :, None])
        return total

    def _bordered(self, rows: Tensor, classes: Tensor, counted: Tensor, labels: Tensor) -> Tensor:
        """Of the logits (K, n) of the pixels ``counted``, where one class is allowed."""
        between = torch.from_numpy(border_weights(classes.view(labels.shape).cpu().numpy())).to(rows.device)
        plain = self.partial.weights[labels.flatten()[counted].long()]
        losses = functional.cross_entropy(rows.T, classes[counted], reduction="none")
        return ((plain + between.flatten()[counted]) * losses).sum() / plain.sum().clamp(min=1e-6)


def _hardest(logits: Tensor, classes: Tensor) -> Tensor:
    losses = functional.cross_entropy(logits, classes, reduction="none").flatten()
    return losses.topk(max(1, round(_HARDEST * len(losses)))).values.mean()
