"""Polygons matched by IoU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Matches:
    """How many predicted polygons found a partner; adds.

    Attributes:
        counts: (3,) int64: true positives, false positives, false negatives.
    """

    counts: NDArray[np.int64]

    def __add__(self, other: Matches) -> Matches:
        """The counts of both."""
        return Matches(self.counts + other.counts)

    def precision(self) -> float:
        """TP / (TP + FP); NaN without predictions."""
        tp, fp, _ = self.counts.tolist()
        return tp / (tp + fp) if tp + fp else float("nan")

    def recall(self) -> float:
        """TP / (TP + FN); NaN without a reference."""
        tp, _, fn = self.counts.tolist()
        return tp / (tp + fn) if tp + fn else float("nan")

    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall; NaN without any polygon."""
        tp, fp, fn = self.counts.tolist()
        return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else float("nan")


def match(
    predicted: NDArray[np.object_], reference: NDArray[np.object_], confidence: NDArray[np.float64] | None = None, *, iou: float = 0.5
) -> tuple[Matches, NDArray[np.intp], NDArray[np.float64]]:
    """Pair polygons as the SpaceNet challenges do: greedily, each with the free partner that it overlaps most (of equals the first).

    The surest prediction chooses first, of equals the one that comes first; a pair counts when its IoU is at least ``iou``, and then
    its reference is taken (Van Etten et al. 2018, SpaceNet, section 4; the same as in solaris).

    Args:
        predicted: (P,) valid polygons or multipolygons, each one instance.
        reference: (R,) the same, in the same plane.
        confidence: (P,) the larger, the earlier; None for the order given.
        iou: smallest intersection over union of a pair.

    Returns:
        the counts; (P,) the partner of each prediction, -1 without; (P,) its IoU with it, 0 without.
    """
    order = np.arange(len(predicted)) if confidence is None else np.argsort(-confidence, kind="stable")
    ours, theirs = shapely.STRtree(reference).query(predicted, predicate="intersects")
    ours, theirs = (each[np.lexsort((theirs, ours))] for each in (ours, theirs))
    one, other = shapely.area(predicted)[ours], shapely.area(reference)[theirs]
    able = np.minimum(one, other) >= (1 - _ROUNDING) * iou * np.maximum(one, other)  # others cannot reach it, however they lie
    ours, theirs, whole = ours[able], theirs[able], (one + other)[able]
    common = shapely.area(shapely.intersection(predicted[ours], reference[theirs]))
    overlap = np.divide(common, whole - common, out=np.zeros_like(common), where=whole > common)
    starts = np.searchsorted(ours, np.arange(len(predicted) + 1))
    partner, best, free = np.full(len(predicted), -1, np.intp), np.zeros(len(predicted)), np.ones(len(reference), bool)
    for number in order:
        mine = slice(starts[number], starts[number + 1])
        among = np.where(free[theirs[mine]], overlap[mine], -1.0)
        if among.size and among.max() >= iou:
            choice = int(among.argmax())
            best[number], partner[number] = among[choice], theirs[mine][choice]
            free[partner[number]] = False
    hits = int((partner >= 0).sum())
    return Matches(np.array([hits, len(predicted) - hits, len(reference) - hits], np.int64)), partner, best
