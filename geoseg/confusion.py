"""Counts that add."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often each label code met each predicted class; adds across windows, images and machines.

    Attributes:
        counts: (C, K) int64, label code x predicted channel.
    """

    counts: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, codes: int, classes: int) -> Confusion:
        """Nothing counted yet."""
        return cls(np.zeros((codes, classes), np.int64))

    @classmethod
    def of(cls, labels: npt.NDArray[np.uint8], channels: npt.NDArray[np.integer], codes: int, classes: int) -> Confusion:
        """Count two arrays of one shape: label codes below ``codes``, predicted channels below ``classes``."""
        pairs = labels.astype(np.int64).ravel() * classes + channels.astype(np.int64).ravel()
        return cls(np.bincount(pairs, minlength=codes * classes).reshape(codes, classes))

    def __add__(self, other: Confusion) -> Confusion:
        """The counts of both."""
        return Confusion(self.counts + other.counts)

    def hits(self, allowed: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """True positives, false positives and false negatives of each class.

        Only pixels count whose code allows this class alone, or not at all; a code that allows nothing never counts.

        Args:
            allowed: (C, K) bool, the classes each code allows.

        Returns:
            three (K,) int64.
        """
        alone = allowed & (allowed.sum(1, keepdims=True) == 1)
        excluded = ~allowed & allowed.any(1, keepdims=True)
        true_positive = (self.counts * alone).sum(0)
        false_positive = (self.counts * excluded).sum(0)
        false_negative = (self.counts.sum(1, keepdims=True) * alone).sum(0) - true_positive
        return true_positive, false_positive, false_negative

    def iou(self, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """(K,) intersection over union; NaN for a class without a single reference pixel."""
        tp, fp, fn = self.hits(allowed)
        return _ratio(tp, tp + fp + fn, tp + fn)

    def f1(self, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """(K,) harmonic mean of precision and recall; NaN for a class without a single reference pixel."""
        tp, fp, fn = self.hits(allowed)
        return _ratio(2 * tp, 2 * tp + fp + fn, tp + fn)

    def accuracy(self, allowed: npt.NDArray[np.bool_]) -> float:
        """Share of labelled pixels whose prediction is an allowed class; NaN when nothing is labelled."""
        labelled = self.counts[allowed.any(1)].sum()
        return float((self.counts * allowed).sum() / labelled) if labelled else float("nan")


def _ratio(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64], reference: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    ratio = np.full(part.shape, np.nan)
    np.divide(part, whole, out=ratio, where=reference > 0)
    return ratio
