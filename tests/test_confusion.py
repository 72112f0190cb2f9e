import math
import warnings

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torchmetrics.functional.classification import binary_calibration_error, multiclass_f1_score, multiclass_jaccard_index

from geoseg.confusion import Confusion, Reliability, mean

K, CODES = 4, 8
DENSE = np.vstack([np.zeros((1, K), bool), np.eye(K, dtype=bool), np.zeros((CODES - K - 1, K), bool)])
ALLOWED = st.builds(lambda rows: np.vstack([np.zeros((1, K), bool), rows]), arrays.arrays(bool, (CODES - 1, K)))
LABELS = arrays.arrays(np.uint8, (12, 9), elements=st.integers(0, CODES - 1))
CHANNELS = arrays.arrays(np.int64, (12, 9), elements=st.integers(0, K - 1))


@given(LABELS, CHANNELS, st.integers(0, 12))
def test_counts_add(labels, channels, row):
    whole = Confusion.of(labels, channels, CODES, K)
    parts = Confusion.of(labels[:row], channels[:row], CODES, K) + Confusion.of(labels[row:], channels[row:], CODES, K)
    assert np.array_equal(whole.counts, parts.counts)
    assert np.array_equal((whole + Confusion.empty(CODES, K)).counts, whole.counts)


@given(LABELS, CHANNELS, ALLOWED)
def test_partial_labels_count_only_where_they_decide(labels, channels, allowed):
    hits = Confusion.of(labels, channels, CODES, K).hits(allowed)
    sets = allowed[labels]
    for k in range(K):
        alone = sets[..., k] & (sets.sum(-1) == 1)
        excluded = ~sets[..., k] & sets.any(-1)
        expected = ((channels == k) & alone).sum(), ((channels == k) & excluded).sum(), ((channels != k) & alone).sum()
        assert tuple(part[k] for part in hits) == expected


@given(arrays.arrays(np.uint8, (12, 9), elements=st.integers(1, K)), CHANNELS)
def test_dense_labels_agree_with_torchmetrics(labels, channels):
    confusion = Confusion.of(labels, channels, CODES, K)
    target, prediction = torch.from_numpy(labels.astype(np.int64) - 1), torch.from_numpy(channels)
    iou = multiclass_jaccard_index(prediction, target, K, average="none").numpy()
    f1 = multiclass_f1_score(prediction, target, K, average="none").numpy()
    present = np.isin(np.arange(K), labels - 1)
    np.testing.assert_allclose(confusion.iou(DENSE)[present], iou[present], atol=1e-6)
    np.testing.assert_allclose(confusion.f1(DENSE)[present], f1[present], atol=1e-6)
    assert np.isnan(confusion.iou(DENSE)[~present]).all()
    assert confusion.accuracy(DENSE) == np.mean(labels - 1 == channels)


# Channel 0 is "no prediction", as in an evaluation: a label is 1 to K, a prediction 0 to K.
EVALUATED = np.vstack([np.zeros((1, 1 + K), bool), np.eye(1 + K, dtype=bool)[1:]])
TRUTH = arrays.arrays(np.uint8, (12, 9), elements=st.integers(0, K))
GUESS = arrays.arrays(np.int64, (12, 9), elements=st.integers(0, K))


@given(TRUTH, GUESS)
def test_evaluations_agree_with_scikit_learn(labels, channels):
    confusion, known = Confusion.of(labels, channels, 1 + K, 1 + K), labels > 0
    truth, guess, there = labels[known], channels[known], np.isin(np.arange(1, 1 + K), labels)
    if not known.any():
        assert math.isnan(confusion.accuracy(EVALUATED))
        assert math.isnan(confusion.kappa(EVALUATED))
        assert math.isnan(confusion.frequency_weighted_iou(EVALUATED))
        return
    classes = list(range(1, 1 + K))
    precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(truth, guess, labels=classes, zero_division=np.nan)
    iou = sklearn.metrics.jaccard_score(truth, guess, labels=classes, average=None, zero_division=0.0)
    assert np.array_equal(confusion.joint(EVALUATED), sklearn.metrics.confusion_matrix(truth, guess, labels=range(1 + K)))
    for ours, theirs, defined in (
        (confusion.iou(EVALUATED)[1:], iou, there),
        (confusion.f1(EVALUATED)[1:], f1, there),
        (confusion.recall(EVALUATED)[1:], recall, there),
        (confusion.precision(EVALUATED)[1:], precision, np.isin(classes, guess) & there),
    ):
        np.testing.assert_allclose(ours[defined], theirs[defined], rtol=0, atol=1e-9)
        assert np.isnan(ours[~defined]).all()
    assert confusion.accuracy(EVALUATED) == pytest.approx(sklearn.metrics.accuracy_score(truth, guess), abs=1e-9)
    assert confusion.frequency_weighted_iou(EVALUATED) == pytest.approx((support * iou).sum() / support.sum(), abs=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn divides by zero where all is one class
        kappa = sklearn.metrics.cohen_kappa_score(truth, guess, labels=range(1 + K))
    assert confusion.kappa(EVALUATED) == pytest.approx(kappa, abs=1e-9, nan_ok=True)
    if len(np.unique(np.concatenate([truth, guess]))) == len(np.unique(truth)) > 1:
        assert mean(confusion.recall(EVALUATED)) == pytest.approx(sklearn.metrics.balanced_accuracy_score(truth, guess), abs=1e-9)


def test_partial_labels_leave_undefined_what_they_do_not_decide():
    allowed = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]], bool)
    either = Confusion(np.array([[9, 9, 9, 9], [5, 1, 0, 0], [0, 3, 1, 2], [0, 0, 0, 0]], np.int64))
    assert not either.dense(allowed)
    assert math.isnan(either.kappa(allowed))
    assert math.isnan(either.frequency_weighted_iou(allowed))
    assert either.accuracy(allowed) == 9 / 12
    assert either.iou(allowed)[0] == 5 / 6
    assert np.isnan(either.iou(allowed)[1:]).all()
    only = Confusion(either.counts * [[1], [1], [0], [1]])
    assert only.dense(allowed)
    assert only.frequency_weighted_iou(allowed) == 5 / 6


@given(arrays.arrays(np.uint8, 200), arrays.arrays(bool, 200), st.integers(1, 20))
def test_calibration_agrees_with_a_plain_loop(confidence, right, number):
    reliability = Reliability.of(confidence, right)
    values, right = confidence[confidence < 255] / 254, right[confidence < 255]
    expected = 0.0
    for at in range(number):
        inside = (values > at / number) & (values <= (at + 1) / number) | ((at == 0) & (values == 0))
        expected += 0 if not inside.any() else inside.mean() * abs(right[inside].mean() - values[inside].mean())
    assert reliability.ece(number) == pytest.approx(expected if values.size else math.nan, abs=1e-9, nan_ok=True)
    assert reliability.bins(number)[0].sum() == values.size


@given(arrays.arrays(np.uint8, 200, elements=st.integers(1, 253)), arrays.arrays(bool, 200), st.integers(1, 199))
def test_calibration_agrees_with_torchmetrics_and_adds(confidence, right, cut):
    parts = Reliability.of(confidence[:cut], right[:cut]) + Reliability.of(confidence[cut:], right[cut:])
    theirs = binary_calibration_error(torch.from_numpy(confidence / 254), torch.from_numpy(right.astype(np.int64)), n_bins=15)
    assert parts.ece() == pytest.approx(float(theirs), abs=1e-6)  # theirs is in single precision
    assert np.array_equal(parts.counts, (Reliability.of(confidence, right) + Reliability.empty()).counts)
