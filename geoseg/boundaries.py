"""Where objects meet: eroded labels, bands along outlines, and outlines that lie close to each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from geoseg.confusion import Confusion
from geoseg.polygons.kernel import Kernel

UNLABELLED = 0
"""The object label of pixels that are not scored."""


def erode(labels: NDArray[np.uint8], radius: int) -> NDArray[np.uint8]:
    """Take a rim off every object, as the ISPRS benchmark does with a disc of 3 pixels before it scores.

    Args:
        labels: (h + 2 r, w + 2 r) uint8, the window and ``radius`` pixels around it; 0 is unlabelled and takes nothing off.
        radius: of the disc r, pixels: its centre and all pixels at most so far.

    Returns:
        (h, w) uint8, 0 where a pixel of another label lies in the disc.
    """
    height, width = labels.shape[0] - 2 * radius, labels.shape[1] - 2 * radius
    centre = labels[radius : radius + height, radius : radius + width]
    eroded = centre.copy()
    for down in range(-radius, radius + 1):
        for right in range(-radius, radius + 1):
            if 0 < down * down + right * right <= radius * radius:
                other = labels[radius + down : radius + down + height, radius + right : radius + right + width]
                eroded[(other != centre) & (other != UNLABELLED)] = UNLABELLED
    return eroded


def band(labels: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Keep the pixels of each object that lie near its outline: G_d and G of Cheng et al. 2021 (Boundary IoU, section 4).

    As in their code the distance is that of ``width`` erosions by 3 x 3 pixels, and the border of the picture is an outline; so is the
    border to what is unlabelled.

    Args:
        labels: (h + 2 d, w + 2 d) uint8, the window and ``width`` pixels around it, 0 outside the picture.
        width: of the band d, pixels.

    Returns:
        (h, w) uint8, 0 in the interior of objects.
    """
    size, core = 2 * width + 1, (slice(width, -width), slice(width, -width))
    lowest = scipy.ndimage.minimum_filter(labels, size, mode="nearest")[core]
    highest = scipy.ndimage.maximum_filter(labels, size, mode="nearest")[core]
    return np.where(lowest == highest, np.uint8(UNLABELLED), labels[core])


@dataclass(frozen=True, slots=True)
class Contours:
    """How much of the outlines of prediction and reference lies close to the other's; adds.

    Attributes:
        counts: (L, 4) int64, of each object label: pixels of its outline in the prediction, those of them near the reference's
            outline of the same label, pixels of its outline in the reference, those of them near the prediction's.
    """

    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, labels: int) -> Contours:
        """Nothing counted yet, for labels below ``labels``."""
        return cls(np.zeros((labels, 4), np.int64))

    @classmethod
    def of(cls, prediction: NDArray[np.uint8], reference: NDArray[np.uint8], labels: int, radius: int) -> Contours:
        """Count in a window.

        The outline of a label are its pixels with a side in common with another label's; unlabelled pixels and the border of the
        picture make no outline.

        Args:
            prediction: (h + 2 r + 2, w + 2 r + 2) uint8 object labels below ``labels``, ``radius`` + 1 pixels beyond the window.
            reference: the same.
            labels: their number.
            radius: r, how far apart outlines may be, pixels.
        """
        counts = np.zeros((labels, 4), np.int64)
        first, second = _outline(prediction), _outline(reference)
        _meet(first, second, radius, counts[:, :2])
        _meet(second, first, radius, counts[:, 2:])
        return cls(counts)

    def __add__(self, other: Contours) -> Contours:
        """The counts of both."""
        return Contours(self.counts + other.counts)

    def f1(self) -> NDArray[np.float64]:
        """(L,) boundary F1, 2 P R / (P + R): P the share of the predicted outline near the reference's, R the reverse.

        The BF measure of Csurka et al. 2013 (section 3.2). NaN for a label without outline in the reference, 0 if nothing is near.
        """
        predicted, right, there, found = self.counts.T.astype(np.float64)
        precision = np.divide(right, predicted, out=np.zeros_like(right), where=predicted > 0)
        recall = np.divide(found, there, out=np.full_like(found, np.nan), where=there > 0)
        both = precision + recall
        f1: NDArray[np.float64] = np.divide(2 * precision * recall, both, out=np.where(np.isnan(both), np.nan, 0.0), where=both > 0)
        return f1


def groups(allowed: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.intp]] | None:
    """Object labels that codes and predicted channels share; None where there are none, because codes overlap.

    Codes that allow disjoint sets part the classes into groups, such as building and anything else; outlines of these groups can be
    compared. Label 0 is unlabelled, 1 a prediction that no code allows.

    Args:
        allowed: (C, K) bool, the channels each code allows.

    Returns:
        (C,) uint8 label of each code, (K,) uint8 label of each channel, (L,) the only channel of each label, -1 if it is of several
        or none.
    """
    distinct = list(dict.fromkeys(map(tuple, allowed[allowed.any(1)].tolist())))
    sets = np.array(distinct, bool).reshape(len(distinct), allowed.shape[1])
    if (sets.sum(0) > 1).any() or len(sets) > 253:
        return None
    of_set = {each: label for label, each in enumerate(distinct, 2)}
    codes = np.array([of_set.get(tuple(row), UNLABELLED) for row in allowed.tolist()], np.uint8)
    channels = np.where(sets.any(0), sets.argmax(0) + 2, 1).astype(np.uint8) if len(sets) else np.ones(allowed.shape[1], np.uint8)
    only = np.array([-1, -1, *(int(np.argmax(row)) if row.sum() == 1 else -1 for row in sets)], np.intp)
    return codes, channels, only


def band_iou(confusion: Confusion) -> NDArray[np.float64]:
    """(L,) boundary IoU of each label from the counts of two bands, |B_R and B_P| / |B_R or B_P|; NaN for a label without band.

    Cheng et al. 2021, equation 2.
    """
    labels = np.eye(confusion.counts.shape[1], dtype=bool)
    return confusion.iou(labels)


def _outline(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h - 2, w - 2) uint8, the labels of outlines without the outermost pixels; 0 elsewhere."""
    centre = labels[1:-1, 1:-1]
    met = np.zeros(centre.shape, bool)
    for side in (labels[:-2, 1:-1], labels[2:, 1:-1], labels[1:-1, :-2], labels[1:-1, 2:]):
        met |= (side != centre) & (side != UNLABELLED)
    return np.where(met, centre, np.uint8(UNLABELLED))


@Kernel
def _meet(these: NDArray[np.uint8], those: NDArray[np.uint8], radius: int, counts: NDArray[np.int64]) -> None:
    """Count the outline pixels of each label, and those with one of ``those`` in the disc around them."""
    for row in range(radius, these.shape[0] - radius):
        for col in range(radius, these.shape[1] - radius):
            label = these[row, col]
            if label == 0:
                continue
            counts[label, 0] += 1
            near = False
            for down in range(-radius, radius + 1):
                for right in range(-radius, radius + 1):
                    inside = down * down + right * right <= radius * radius
                    if inside and those[row + down, col + right] == label:
                        near = True
                        break
                if near:
                    break
            if near:
                counts[label, 1] += 1
