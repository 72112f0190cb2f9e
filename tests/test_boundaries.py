"""Erosion, bands and outlines against scipy's morphology."""

import numpy as np
import scipy.ndimage
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from geoseg.boundaries import Contours, band, band_iou, erode, groups
from geoseg.confusion import Confusion

L = 4
LABELS = arrays.arrays(np.uint8, (14, 11), elements=st.integers(0, L - 1), fill=st.nothing())
BLOCKS = st.builds(
    lambda coarse: np.kron(coarse, np.ones((4, 4), np.uint8)), arrays.arrays(np.uint8, (4, 4), elements=st.integers(0, L - 1))
)
PICTURES = st.one_of(LABELS, BLOCKS)
WIDTHS = st.integers(1, 4)


def disc(radius):
    down, right = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return down**2 + right**2 <= radius**2


def same_shape(first, second):
    height, width = np.minimum(first.shape, second.shape)
    return first[:height, :width], second[:height, :width]


@given(PICTURES, WIDTHS)
def test_erosion_keeps_what_no_other_object_is_near(labels, radius):
    eroded = erode(np.pad(labels, radius), radius)
    for label in range(1, L):
        others = (labels > 0) & (labels != label)
        near = scipy.ndimage.binary_dilation(others, disc(radius))
        assert np.array_equal(eroded == label, (labels == label) & ~near)


@given(PICTURES, WIDTHS)
def test_bands_are_those_of_repeated_erosion(labels, width):
    found = band(np.pad(labels, width), width)
    for label in range(1, L):
        interior = scipy.ndimage.binary_erosion(labels == label, np.ones((3, 3)), iterations=width, border_value=0)
        assert np.array_equal(found == label, (labels == label) & ~interior)


@given(PICTURES, PICTURES, WIDTHS)
def test_boundary_iou_is_that_of_the_bands(labels, others, width):
    labels, others = same_shape(labels, others)
    ours, theirs = band(np.pad(labels, width), width), band(np.pad(others, width), width)
    iou = band_iou(Confusion.of(theirs, ours, L, L))
    for label in range(1, L):
        both, either = ((ours == label) & (theirs == label)).sum(), ((ours == label) | (theirs == label)).sum()
        np.testing.assert_allclose(iou[label], both / either if (theirs == label).any() else np.nan, rtol=0, atol=1e-9)


def outline(labels, label):
    """Pixels with a side in common with another label, by shifts over the picture."""
    padded, found = np.pad(labels, 1), np.zeros(labels.shape, bool)
    height, width = labels.shape
    for down, right in ((0, 1), (2, 1), (1, 0), (1, 2)):
        side = padded[down : down + height, right : right + width]
        found |= (side != label) & (side > 0)
    return found & (labels == label)


@given(PICTURES, PICTURES, WIDTHS)
def test_contours_count_what_is_near(labels, others, radius):
    labels, others = same_shape(labels, others)
    found = Contours.of(np.pad(labels, radius + 1), np.pad(others, radius + 1), L, radius)
    for label in range(1, L):
        ours, theirs = outline(labels, label), outline(others, label)
        near_theirs, near_ours = (scipy.ndimage.binary_dilation(each, disc(radius)) for each in (theirs, ours))
        expected = [ours.sum(), (ours & near_theirs).sum(), theirs.sum(), (theirs & near_ours).sum()]
        assert found.counts[label].tolist() == expected
        precision, recall = expected[1] / max(expected[0], 1), expected[3] / max(expected[2], 1)
        f1 = np.nan if not expected[2] else 2 * precision * recall / (precision + recall) if precision + recall else 0
        np.testing.assert_allclose(found.f1()[label], f1, rtol=0, atol=1e-9)


def test_equal_pictures_have_equal_outlines():
    labels = np.kron(np.array([[1, 2], [3, 1]], np.uint8), np.ones((6, 6), np.uint8))
    counts = Contours.of(np.pad(labels, 3), np.pad(labels, 3), L, 2)
    assert np.array_equal(counts.f1()[1:], [1, 1, 1])
    assert np.isnan(counts.f1()[0])
    assert np.array_equal((counts + Contours.empty(L)).counts, counts.counts)


def test_groups_are_classes_building_or_not_and_none_where_codes_overlap():
    dense = np.vstack([np.zeros((1, 4), bool), np.eye(4, dtype=bool)[1:]])
    codes, channels, only = groups(dense)
    assert codes.tolist() == [0, 2, 3, 4]
    assert channels.tolist() == [1, 2, 3, 4]
    assert only.tolist() == [-1, -1, 1, 2, 3]
    binary = np.array([[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 1]], bool)
    codes, channels, only = groups(binary)
    assert codes.tolist() == [0, 2, 3]
    assert channels.tolist() == [1, 3, 2, 3]
    assert only.tolist() == [-1, -1, 2, -1]
    assert groups(np.array([[0, 0, 0], [0, 1, 1], [0, 0, 1]], bool)) is None
