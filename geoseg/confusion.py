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
        """(K,) intersection over union, TP / (TP + FP + FN), or Jaccard index; NaN for a class without a single reference pixel."""
        tp, fp, fn = self.hits(allowed)
        return _ratio(tp, tp + fp + fn, tp + fn)

    def f1(self, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """(K,) harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN); NaN for a class without a single reference pixel.

        For pixels this is the Dice coefficient, 2 |P and R| / (|P| + |R|).
        """
        tp, fp, fn = self.hits(allowed)
        return _ratio(2 * tp, 2 * tp + fp + fn, tp + fn)

    def precision(self, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """(K,) user's accuracy, TP / (TP + FP); NaN for a class without a single reference pixel, or never predicted where it counts."""
        tp, fp, fn = self.hits(allowed)
        return _ratio(tp, tp + fp, (tp + fp) * (tp + fn))

    def recall(self, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """(K,) producer's accuracy, TP / (TP + FN); NaN for a class without a single reference pixel. Its mean is the mean accuracy."""
        tp, _, fn = self.hits(allowed)
        return _ratio(tp, tp + fn, tp + fn)

    def accuracy(self, allowed: npt.NDArray[np.bool_]) -> float:
        """Share of labelled pixels whose prediction is an allowed class; NaN when nothing is labelled.

        For labels of one class each this is the pixel accuracy or overall accuracy, sum of n_kk / N.
        """
        labelled = self.counts[allowed.any(1)].sum()
        return float((self.counts * allowed).sum() / labelled) if labelled else float("nan")

    def dense(self, allowed: npt.NDArray[np.bool_]) -> bool:
        """Whether each label that was counted allows one class, or nothing."""
        return not self.counts[allowed.sum(1) > 1].any()

    def joint(self, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """(K, K) int64, reference class x predicted class n_rp, over the pixels whose code allows one class alone."""
        alone = allowed & (allowed.sum(1, keepdims=True) == 1)
        joint: npt.NDArray[np.int64] = alone.T.astype(np.int64) @ self.counts
        return joint

    def frequency_weighted_iou(self, allowed: npt.NDArray[np.bool_]) -> float:
        """IoU weighted by how common the classes are in the reference, sum of n_k IoU_k / sum of n_k.

        As in Long et al. 2015 (section 5). NaN when nothing is labelled, or a label allows several classes.
        """
        weights = self.joint(allowed).sum(1)
        if not self.dense(allowed) or not weights.any():
            return float("nan")
        there = weights > 0
        return float((weights[there] * self.iou(allowed)[there]).sum() / weights.sum())

    def kappa(self, allowed: npt.NDArray[np.bool_]) -> float:
        """Cohen's kappa, (p_o - p_e) / (1 - p_e): agreement p_o = sum of n_kk / N beyond that of chance p_e = sum of n_k. n_.k / N^2.

        Cohen 1960. NaN when nothing is labelled, a label allows several classes, or chance alone agrees everywhere.
        """
        joint = self.joint(allowed).astype(np.float64)
        total = joint.sum()
        if not self.dense(allowed) or not total:
            return float("nan")
        by_chance = float((joint.sum(0) / total) @ (joint.sum(1) / total))
        return (float(np.trace(joint)) / float(total) - by_chance) / (1 - by_chance) if by_chance < 1 else float("nan")


@dataclass(frozen=True, slots=True)
class Reliability:
    """How often predictions of each confidence were right; adds.

    Attributes:
        counts: (255, 2) int64, for each confidence byte (254 = 1.0): pixels, and those of them that were right.
    """

    counts: npt.NDArray[np.int64]

    @classmethod
    def empty(cls) -> Reliability:
        """Nothing counted yet."""
        return cls(np.zeros((255, 2), np.int64))

    @classmethod
    def of(cls, confidence: npt.NDArray[np.uint8], right: npt.NDArray[np.bool_]) -> Reliability:
        """Count confidence bytes and whether the prediction was right, two arrays of one shape; 255 is unknown and not counted."""
        pixels = np.bincount(confidence.ravel(), minlength=256)[:255]
        return cls(np.stack([pixels, np.bincount(confidence[right], minlength=256)[:255]], axis=1))

    def __add__(self, other: Reliability) -> Reliability:
        """The counts of both."""
        return Reliability(self.counts + other.counts)

    def bins(self, number: int = 15) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Pixels, mean confidence and accuracy in equal bins ((m - 1) / M, m / M], the first with 0 (Guo et al. 2017, section 2).

        Args:
            number: of bins M.

        Returns:
            (M,) int64, (M,) and (M,) float64, the latter NaN in empty bins.
        """
        confidence = np.arange(255) / 254
        place = np.maximum(-(-np.arange(255) * number // 254) - 1, 0)
        pixels, right = (np.bincount(place, column, number) for column in self.counts.T)
        total = np.bincount(place, self.counts[:, 0] * confidence, number)
        empty = np.full(number, np.nan)
        means, accuracy = (np.divide(part, pixels, out=empty.copy(), where=pixels > 0) for part in (total, right))
        return pixels.astype(np.int64), means, accuracy

    def ece(self, number: int = 15) -> float:
        """Expected calibration error, sum of n_m / N |accuracy_m - confidence_m| over the bins; NaN without pixels.

        Guo et al. 2017, equation 5 (after Naeini et al. 2015).
        """
        pixels, means, accuracy = self.bins(number)
        there = pixels > 0
        return float((pixels[there] * np.abs(accuracy - means)[there]).sum() / pixels.sum()) if there.any() else float("nan")


def mean(values: npt.NDArray[np.float64]) -> float:
    """Mean of the values that are defined; NaN if none is."""
    found = values[~np.isnan(values)]
    return float(found.mean()) if found.size else float("nan")


def _ratio(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64], reference: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    ratio = np.full(part.shape, np.nan)
    np.divide(part, whole, out=ratio, where=reference > 0)
    return ratio
