"""Mask R-CNN on a ResNet-50 with a feature pyramid, as in torchvision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from geoseg.errors import CardError
from geoseg.networks.registry import Architecture
from geoseg.options import nearest

_MAKERS: dict[str, Callable[..., Any]] = {
    "maskrcnn_resnet50_fpn": detection.maskrcnn_resnet50_fpn,
    "maskrcnn_resnet50_fpn_v2": detection.maskrcnn_resnet50_fpn_v2,
}
_LEVELS = 5  # of the pyramid, strides 4 to 64


@dataclass(frozen=True, slots=True)
class Detections:
    """What the network answers for one image; ``n`` of them, the surest first.

    Attributes:
        boxes: (n, 4) float32, left, top, right and bottom in pixels.
        labels: (n,) int64, 1 to K; 0 is what is no instance, and never an answer.
        scores: (n,) float32, 0 to 1.
        masks: (n, 28, 28) float32, how likely each part of the box is inside, 0 to 1.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor

    def cpu(self) -> Detections:
        """The same, on the host."""
        return Detections(self.boxes.cpu(), self.labels.cpu(), self.scores.cpu(), self.masks.cpu())


class MaskRCNN(nn.Module):
    """He et al. 2017, "Mask R-CNN", on the feature pyramid of Lin et al. 2017; v2 with the heads of Li et al. 2021, section 3.1.

    Modules, names and shapes are those of ``torchvision.models.detection``, so its weights load (three bands). Images are not
    resized and not normalised here: all of a batch have one size, at the card's resolution and scaling. Nothing is frozen.

    Args:
        architecture: ``maskrcnn_resnet50_fpn`` or ``maskrcnn_resnet50_fpn_v2``.
        bands: of the input.
        classes: K, of instances.
        score_threshold: detections below it are left out. (torchvision's default is 0.05, which suits a precision-recall curve.)
        nms_threshold: of two boxes of a class in an image whose IoU is above it, the less sure one is left out.
        most: detections of an image, at most.
        anchors: side of the anchor boxes on each of the five levels of the pyramid, pixels; choose them for the size of the instances.
        rois: proposals of an image that training samples, a quarter of them on instances (section 3.1; fewer take less time and memory).
    """

    stride = 64

    def __init__(
        self,
        architecture: str,
        bands: int,
        classes: int,
        *,
        score_threshold: float = 0.5,
        nms_threshold: float = 0.5,
        most: int = 300,
        anchors: Sequence[int] = (32, 64, 128, 256, 512),
        rois: int = 512,
    ) -> None:
        super().__init__()
        if len(anchors) != _LEVELS:
            raise ValueError(f"{len(anchors)} anchors, expected one for each of the {_LEVELS} levels")
        model = _MAKERS[architecture](
            weights=None,
            weights_backbone=None,
            num_classes=classes + 1,
            box_score_thresh=score_threshold,
            box_nms_thresh=nms_threshold,
            box_detections_per_img=most,
            box_batch_size_per_image=rois,
        )
        self.backbone, self.rpn, self.roi_heads = model.backbone, model.rpn, model.roi_heads
        self.rpn.anchor_generator = AnchorGenerator(tuple((side,) for side in anchors), ((0.5, 1.0, 2.0),) * _LEVELS)
        if bands != 3:
            self.backbone.body.conv1 = nn.Conv2d(bands, 64, kernel_size=7, stride=2, padding=3, bias=False)

    def forward(self, pixels: Tensor) -> list[Detections]:
        """Detections of each of the scaled images (N, B, H, W); for a network in evaluation mode."""
        found, _ = self._answer(pixels, None)
        return [Detections(each["boxes"], each["labels"], each["scores"], each["masks"][:, 0]) for each in found]

    def losses(self, pixels: Tensor, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The five losses that training adds up (section 3, ``L_cls + L_box + L_mask``, and the two of the proposals).

        Args:
            pixels: (N, B, H, W) scaled images.
            targets: of each image: ``boxes`` (G, 4) float32, ``labels`` (G,) int64 from 1, ``masks`` (G, H, W) uint8; G may be 0.
        """
        _, losses = self._answer(pixels, list(targets))
        return losses

    def _answer(self, pixels: Tensor, targets: list[dict[str, Tensor]] | None) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Features in the precision that is asked for, boxes in float32: bfloat16 has no pixel 300 beside pixel 301."""
        features = {name: level.float() for name, level in self.backbone(pixels).items()}
        with torch.autocast(pixels.device.type, enabled=False):
            images = ImageList(pixels, [(pixels.shape[2], pixels.shape[3])] * len(pixels))
            proposals, of_proposals = self.rpn(images, features, targets)
            found, of_heads = self.roi_heads(features, proposals, images.image_sizes, targets)
        return found, {**of_proposals, **of_heads}


ARCHITECTURES: dict[str, Architecture] = {
    "maskrcnn_resnet50_fpn": Architecture(
        "maskrcnn_resnet50_fpn",
        "Mask R-CNN",
        MaskRCNN,
        "He, Gkioxari, Dollár, Girshick",
        2017,
        "Mask R-CNN",
        "arXiv:1703.06870",
        "torchvision",
    ),
    "maskrcnn_resnet50_fpn_v2": Architecture(
        "maskrcnn_resnet50_fpn_v2",
        "Mask R-CNN, improved",
        MaskRCNN,
        "Li, Xie, Chen, Dollár, He, Girshick",
        2021,
        "Benchmarking Detection Transfer Learning with Vision Transformers",
        "arXiv:2111.11429",
        "torchvision",
    ),
}
"""Every architecture that answers with instances, by its name."""


def names() -> tuple[str, ...]:
    """The architectures that answer with instances."""
    return tuple(ARCHITECTURES)


def build(architecture: str, bands: int, classes: int, **options: Any) -> MaskRCNN:
    """Make a network with random weights; nothing is downloaded.

    Args:
        architecture: one of :func:`names`.
        bands: channels of the input.
        classes: of instances.
        options: of :class:`MaskRCNN`.

    Raises:
        CardError: if the architecture or an option is unknown, or an option cannot be.
    """
    if architecture not in ARCHITECTURES:
        raise CardError(f"unknown architecture {architecture!r}; {nearest(architecture, names())}")
    known = ARCHITECTURES[architecture].options
    for option in options.keys() - known:
        raise CardError(f"architecture {architecture!r} has no option {option!r}; {nearest(option, known)}")
    try:
        return MaskRCNN(architecture, bands, classes, **options)
    except (ValueError, TypeError) as error:
        raise CardError(f"architecture {architecture!r} cannot be built with {options}: {error}") from error
