import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index

from geoseg.confusion import Confusion

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
