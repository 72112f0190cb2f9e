"""Measures of a map, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geoseg.boundaries import Contours, band_iou
from geoseg.confusion import Confusion, Reliability, mean
from geoseg.legend import ISPRS, Legend

LEVEL = 0.95
"""Of confidence intervals."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """A way to score that others can repeat.

    Attributes:
        says: what it does, one sentence.
        legend: whose classes it is about; None for any.
        leaves_out: class that counts as a label and as a prediction, but not in means over classes.
        erode_px: radius of the disc by which the reference's objects are eroded; what is lost is not scored.
        of_polygons: whether it is about polygons.
        of_regions: whether regions between borders are compared, too.
    """

    says: str
    legend: Legend | None = None
    leaves_out: str | None = None
    erode_px: int = 0
    of_polygons: bool = False
    of_regions: bool = False


_ERODED = "rims of the reference's objects (disc of 3 pixels) are not scored"
_FIVE = "all six classes count, means over classes are over five, without clutter"
PROTOCOLS: Mapping[str, Protocol] = {
    "plain": Protocol("every labelled pixel counts; means over classes are over those that the reference has"),
    "isprs-eroded": Protocol(f"{_ERODED}; {_FIVE}", ISPRS, "clutter", 3),
    "isprs-eroded-6": Protocol(f"{_ERODED}; means over classes are over all six", ISPRS, None, 3),
    "isprs-full": Protocol(f"full reference; {_FIVE}", ISPRS, "clutter"),
    "isprs-full-6": Protocol("full reference; means over classes are over all six", ISPRS),
    "isbi": Protocol(
        "every labelled pixel counts; of the regions between borders, as in ISBI 2012, pixel, Rand and warping error, means over scenes",
        of_regions=True,
    ),
    "spacenet": Protocol(
        "polygons, the surest first, each with the free reference polygon of largest IoU; a pair counts from the IoU given on",
        of_polygons=True,
    ),
}
"""Ways to score, by name."""


@dataclass(frozen=True, eq=False)
class Tally:
    """Everything that was counted in one scene; adds.

    Attributes:
        confusion: label codes x channels, (256, 1 + K).
        bands: object labels in bands along outlines, reference x prediction, (L, L).
        contours: outlines, (L, 4).
        reliability: confidence, (255, 2).
    """

    confusion: Confusion
    bands: Confusion
    contours: Contours
    reliability: Reliability

    def __add__(self, other: Tally) -> Tally:
        """The counts of both."""
        return Tally(
            self.confusion + other.confusion,
            self.bands + other.bands,
            self.contours + other.contours,
            self.reliability + other.reliability,
        )


@dataclass(frozen=True, eq=False)
class Scoring:
    """What counts mean.

    Attributes:
        legend: the classes, in the order of the channels from 1.
        allowed: (256, 1 + K) bool, the channels each code allows.
        in_means: (1 + K,) bool, the channels that count in means over classes.
        objects: (L,) the channel of each object label, -1 without; empty where outlines are not compared.
    """

    legend: Legend
    allowed: NDArray[np.bool_]
    in_means: NDArray[np.bool_]
    objects: NDArray[np.intp]

    def empty(self) -> Tally:
        """Nothing counted yet."""
        labels = len(self.objects)
        confusion = Confusion.empty(self.allowed.shape[0], self.allowed.shape[1])
        return Tally(confusion, Confusion.empty(labels, labels), Contours.empty(labels), Reliability.empty())

    def by_class(self, tally: Tally) -> dict[str, NDArray[np.float64]]:
        """(1 + K,) of each measure of classes; NaN where it is not defined."""
        counts, allowed = tally.confusion, self.allowed
        f1 = counts.f1(allowed)
        return {
            "iou": counts.iou(allowed),
            "f1": f1,
            "dice": f1,
            "precision": counts.precision(allowed),
            "recall": counts.recall(allowed),
            "boundary_iou": self._of_objects(band_iou(tally.bands)),
            "boundary_f1": self._of_objects(tally.contours.f1()),
        }

    def overall(self, tally: Tally, by_class: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
        """Measures over all classes; NaN where they are not defined."""
        means = {name: mean(values[self.in_means]) for name, values in by_class.items()}
        return {
            "pixel_accuracy": tally.confusion.accuracy(self.allowed),
            "mean_accuracy": means["recall"],
            "miou": means["iou"],
            "frequency_weighted_iou": tally.confusion.frequency_weighted_iou(self.allowed),
            "mean_f1": means["f1"],
            "mean_dice": means["dice"],
            "kappa": tally.confusion.kappa(self.allowed),
            "mean_boundary_iou": means["boundary_iou"],
            "mean_boundary_f1": means["boundary_f1"],
            "ece": tally.reliability.ece(),
        }

    def vector(self, tally: Tally) -> NDArray[np.float64]:
        """All figures one after the other, as `names` names them."""
        by_class = self.by_class(tally)
        overall = self.overall(tally, by_class)
        return np.concatenate([np.array(list(overall.values())), *(values[1:] for values in by_class.values())])

    def _of_objects(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """From object labels to channels."""
        found = np.full(len(self.legend) + 1, np.nan)
        there = self.objects > 0
        found[self.objects[there]] = values[: len(self.objects)][there]
        return found


def interval(
    scenes: Sequence[NDArray[np.int64]], figures: Callable[[NDArray[np.int64]], NDArray[np.float64]], *, draws: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile bootstrap over scenes (Efron 1979): scenes are drawn with replacement, their counts added, the figures read anew.

    Args:
        scenes: counts of each scene, (C,) each.
        figures: from added counts to (F,) figures; NaN for what is not defined.
        draws: how often.
        seed: of the draws.

    Returns:
        (F,) lower and (F,) upper ends of the 95 % intervals; draws in which a figure is not defined are left out of its own.
    """
    counts, random = np.stack(scenes), np.random.default_rng(seed)
    weights = random.multinomial(len(scenes), np.full(len(scenes), 1 / len(scenes)), draws)
    drawn = np.stack([figures(each @ counts) for each in weights])
    drawn.sort(axis=0)  # NaN last
    known = (~np.isnan(drawn)).sum(0)
    low, high = (_quantile(drawn, known, part) for part in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return low, high


def _quantile(drawn: NDArray[np.float64], known: NDArray[np.intp], part: float) -> NDArray[np.float64]:
    """Of the first ``known`` values of each column, which ascend, by linear interpolation."""
    place = np.maximum(known - 1, 0) * part
    lower = np.floor(place).astype(np.intp)
    upper, columns = np.minimum(lower + 1, np.maximum(known - 1, 0)), np.arange(drawn.shape[1])
    ends: NDArray[np.float64] = drawn[lower, columns] + (place - lower) * (drawn[upper, columns] - drawn[lower, columns])
    return ends


def defined(value: float) -> float | None:
    """A figure for JSON: None where it is not defined."""
    return None if math.isnan(value) else float(value)
