"""A card and its weights on a device, answering batches with instances."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

from geoseg.card import ModelCard
from geoseg.instances import Instance
from geoseg.networks import maskrcnn
from geoseg.networks.maskrcnn import Detections
from geoseg.scene import Stretch
from geoseg.segmenter import Segmenter, load_weights

_BATCH_ON_GPU = 8
_INSIDE = 0.5


class Detector(Segmenter):
    """A segmenter whose network is a Mask R-CNN: `instances` is its answer, and boxes and masks are made in float32 in any precision.

    ``batch`` is 1 on a CPU, 8 on a GPU, halved when memory runs out.
    """

    @staticmethod
    def _read(model: str | Path) -> tuple[ModelCard, torch.nn.Module]:
        card, weights = ModelCard.read(model)
        card.check(weights)
        network = maskrcnn.build(card.architecture, bands=len(card.bands), classes=len(card.legend), **card.options)
        load_weights(network, card, weights)
        return card, network

    def prepare(self, shape: tuple[int, int], largest: int | None = None) -> None:
        """Warm up: the first pass is the one that chooses and compiles kernels.

        Args:
            shape: height and width of the tiles to come.
            largest: of a batch; None for the device's own choice.
        """
        self.batch = largest or (_BATCH_ON_GPU if self.device.type == "cuda" else 1)
        self.instances(np.zeros((self.batch, len(self.card.bands), *shape), np.uint8), np.ones((self.batch, *shape), bool))

    def instances(self, pixels: NDArray[np.generic], valid: NDArray[np.bool_], stretch: Stretch | None = None) -> list[list[Instance]]:
        """The instances in each tile of a batch, the surest first, in pixels of the tile, without pixels that are no data.

        Args:
            pixels: ``(N, B, H, W)`` in the scene's own dtype.
            valid: ``(N, H, W)`` bool.
            stretch: the scene's own range per band where it is not of the card's dtype.

        Raises:
            torch.OutOfMemoryError: if not even one tile fits.
        """
        found = self._detections(self._scale(pixels, valid, stretch))
        return [list(_instances(each, self.card.legend.ids, known)) for each, known in zip(found, valid, strict=True)]

    def _detections(self, scaled: torch.Tensor) -> list[Detections]:
        while True:
            try:
                return [each.cpu() for part in torch.split(scaled, self.batch) for each in cast(list[Detections], self._forward(part))]
            except torch.OutOfMemoryError:
                if self.batch == 1:
                    raise
                self.batch //= 2
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()


def cropped(found: Detections, shape: tuple[int, int]) -> Iterator[tuple[NDArray[np.bool_], int, int]]:
    """The masks in pixels of their image, each as its box with the row and column where it begins; maybe empty.

    He et al. 2017, section 3.1, as torchvision does it, which makes masks of the size of the image instead: the 28 x 28 mask with a
    margin of one cell is stretched over the box with the same margin, bilinearly, and cut at one half.

    Args:
        found: on the CPU.
        shape: height and width of the image.

    Yields:
        mask (h, w) bool, row, column.
    """
    masks, scale = expand_masks(found.masks[:, None], 1)
    for (left, top, right, bottom), mask in zip(expand_boxes(found.boxes, scale).to(torch.int64).tolist(), masks, strict=True):
        size = max(bottom - top + 1, 1), max(right - left + 1, 1)
        inside = functional.interpolate(mask[None], size=size, mode="bilinear", align_corners=False)[0, 0] >= _INSIDE
        rows, cols = slice(max(-top, 0), max(shape[0] - top, 0)), slice(max(-left, 0), max(shape[1] - left, 0))
        yield inside[rows, cols].numpy(), max(top, 0), max(left, 0)


def _instances(found: Detections, ids: tuple[int, ...], valid: NDArray[np.bool_]) -> Iterator[Instance]:
    """Detections as instances, without pixels that are no data."""
    for (mask, row, col), label, score in zip(
        cropped(found, (valid.shape[0], valid.shape[1])), found.labels.tolist(), found.scores.tolist(), strict=True
    ):
        known = mask & valid[row : row + mask.shape[0], col : col + mask.shape[1]]
        instance = Instance.of(known, row, col, ids[label - 1], score)
        if instance is not None:
            yield instance
