"""Average precision of instances, as COCO counts it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

THRESHOLDS: Final = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""IoU from which a detection is a hit: 0.50, 0.55, ... 0.95."""

SIZES: Final[Mapping[str, tuple[float, float]]] = {"s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
"""Areas of small, medium and large instances in pixels, both ends included."""

_RECALLS = np.linspace(0, 1, 101)
_ALL = (0, 1e10)


@dataclass(frozen=True, eq=False)
class _Verdicts:
    """What became of the detections of one class in one image, for one range of areas.

    Attributes:
        scores: (D,) float64, falling.
        hit: (T, D) bool, matched to an instance, at each threshold.
        ignored: (T, D) bool, neither hit nor miss.
        wanted: number of instances to be found.
    """

    scores: NDArray[np.float64]
    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    wanted: int


class AveragePrecision:
    """Average precision over images, classes and IoU thresholds (Lin et al. 2014, "Microsoft COCO", and its evaluation code).

    For a class and a threshold, the detections of all images are ranked by score. In each image they are matched to the
    instances one by one, the surest first, each to the instance that it overlaps most. Precision is made to fall with recall,
    and AP is its mean at the recalls 0, 0.01, ... 1. Instances outside a range of areas, and crowds, are neither to be found nor
    wrong to find; an unmatched detection outside the range does not count.

    Args:
        sizes: names and areas of the ranges, in pixels: the least and the largest area, both included.
        most: detections of a class that count in an image, the surest ones. COCO's 100 suit pictures; a whole scene needs more.
    """

    def __init__(self, sizes: Mapping[str, tuple[float, float]] = SIZES, most: int = 100) -> None:
        self.sizes, self.most = dict(sizes), most
        self._verdicts: dict[tuple[int, str], list[_Verdicts]] = defaultdict(list)

    def add(
        self,
        class_id: int,
        scores: NDArray[np.float64],
        areas: NDArray[np.float64],
        true_areas: NDArray[np.float64],
        overlaps: NDArray[np.float64],
        crowd: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count one class in one image. Classes and images may come in any order; equal scores rank by this order.

        Args:
            class_id: of all that follows.
            scores: (D,) of the detections.
            areas: (D,) of the detections, pixels.
            true_areas: (G,) of the instances that are there, pixels.
            overlaps: (D, G) IoU; with a crowd, the share of the detection that lies in it.
            crowd: (G,) bool, many instances drawn as one; it may match any number of detections. None for no crowd.
        """
        crowd = np.zeros(len(true_areas), bool) if crowd is None else crowd
        ranked = np.argsort(-scores, kind="stable")[: self.most]
        for name, (least, largest) in {"": _ALL, **self.sizes}.items():
            outside = crowd | (true_areas < least) | (true_areas > largest)
            order = np.argsort(outside, kind="stable")
            matched = _matched(overlaps[np.ix_(ranked, order)], outside[order], crowd[order])
            hit = matched >= 0
            passed = hit & np.append(outside[order], False)[matched]
            off = (areas[ranked] < least) | (areas[ranked] > largest)
            verdicts = _Verdicts(scores[ranked], hit, passed | (~hit & off), int((~outside).sum()))
            self._verdicts[class_id, name].append(verdicts)

    def of(self, class_id: int, size: str = "") -> NDArray[np.float64]:
        """AP of a class at each of `THRESHOLDS` (T,), NaN if no such instance is there; ``size`` names a range of areas."""
        images = self._verdicts.get((class_id, size), [])
        wanted = sum(image.wanted for image in images)
        if not wanted:
            return np.full(len(THRESHOLDS), np.nan)
        ranked = np.argsort(-np.concatenate([image.scores for image in images]), kind="stable")
        hit, ignored = (np.concatenate([getattr(image, name) for image in images], axis=1)[:, ranked] for name in ("hit", "ignored"))
        right, wrong = np.cumsum(hit & ~ignored, axis=1), np.cumsum(~hit & ~ignored, axis=1)
        recall, precision = right / wanted, right / np.maximum(right + wrong, 1)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        at = np.stack([np.searchsorted(row, _RECALLS, side="left") for row in recall])
        padded = np.pad(precision, [(0, 0), (0, 1)])
        mean: NDArray[np.float64] = np.take_along_axis(padded, at, axis=1).mean(axis=1)
        return mean

    def summary(self) -> dict[str, float]:
        """Means over the classes that occur: ``ap``, ``ap50``, ``ap75``, and ``ap_s``, ``ap_m``, ``ap_l`` after the ranges; else NaN."""
        classes = sorted({class_id for class_id, _ in self._verdicts})
        table = {
            name: np.array([self.of(class_id, name) for class_id in classes]).reshape(-1, len(THRESHOLDS)) for name in ("", *self.sizes)
        }
        at = {round(threshold, 2): number for number, threshold in enumerate(THRESHOLDS)}
        figures = {"ap": table[""], "ap50": table[""][:, at[0.5]], "ap75": table[""][:, at[0.75]]}
        figures |= {f"ap_{name}": table[name] for name in self.sizes}
        return {name: _mean(values) for name, values in figures.items()}


def _matched(overlaps: NDArray[np.float64], outside: NDArray[np.bool_], crowd: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The instance (T, D) that each detection is matched to, -1 for none.

    Args:
        overlaps: (D, G) of detections, the surest first, and instances, those outside last.
        outside: (G,) not to be found: matched only where no other is.
        crowd: (G,) may be matched more than once.
    """
    matched = np.full((len(THRESHOLDS), len(overlaps)), -1)
    for number, threshold in enumerate(THRESHOLDS):
        free = np.ones(len(outside), bool)
        for detection, row in enumerate(overlaps):
            able = (free | crowd) & (row >= min(threshold, 1 - 1e-10))
            able = able & ~outside if (able & ~outside).any() else able
            if able.any():
                best = np.flatnonzero(able & (row == row[able].max()))[-1]  # of equals the last, as COCO's loop leaves it
                matched[number, detection] = best
                free[best] = False
    return matched


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
