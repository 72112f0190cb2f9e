"""Matched polygons: known scores of the SpaceNet challenge, and a plain loop."""

import csv
import math

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from geoseg.comparison.pairs import Pair
from geoseg.comparison.polygons import matches_of
from geoseg.matching import Matches, match
from tests.conftest import SHARED

FIXTURE = SHARED / "data" / "eval" / "spacenet" / "metric_fixture"
BOXES = st.lists(
    st.builds(lambda x, y, w, h: shapely.box(x, y, x + w, y + h), *[st.integers(0, 12)] * 2, *[st.integers(1, 6)] * 2), max_size=9
)


@pytest.mark.skipif(not FIXTURE.is_dir(), reason="the SpaceNet fixture is not here")
def test_scores_of_the_solaris_fixture():
    pair = Pair("sample", FIXTURE / "SN2_sample_preds.csv", FIXTURE / "SN2_sample_truth.csv")
    found = {name: each["polygon"] for name, each in matches_of(pair, class_name=None, iou=0.5, min_area=None)}
    with (FIXTURE / "SN2_test_results_full.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["imageID"]: [int(row[key]) for key in ("TruePos", "FalsePos", "FalseNeg")] for row in rows} == {
        name: each.counts.tolist() for name, each in found.items()
    }
    for row in rows:
        if int(row["TruePos"]):
            assert found[row["imageID"]].f1() == pytest.approx(float(row["F1Score"]), abs=1e-9)
    for area, f1 in (("AOI_2_Vegas", 0.8860759493670887), ("AOI_5_Khartoum", 0.4444444444444444)):
        total = sum((each for name, each in found.items() if name.startswith(area)), Matches(np.zeros(3, np.int64)))
        assert total.f1() == pytest.approx(f1, abs=1e-9)


def by_hand(predicted, reference, order, least):
    """Pairs, greedily, without a tree."""
    free, pairs = set(range(len(reference))), {}
    for number in order:
        overlaps = {
            other: predicted[number].intersection(reference[other]).area / predicted[number].union(reference[other]).area for other in free
        }
        best = max(overlaps.values(), default=0)
        if best >= least:
            pairs[number] = best
            free -= {min(other for other in overlaps if overlaps[other] == best)}
    return pairs


@given(BOXES, BOXES, st.sampled_from([0.1, 0.5, 1.0]), st.randoms(use_true_random=False))
def test_matching_is_greedy_and_one_to_one(predicted, reference, least, random):
    sure = np.array([random.choice([0.1, 0.5, 0.9]) for _ in predicted])
    ours, theirs = np.array(predicted, object), np.array(reference, object)
    counts, partners, best = match(ours, theirs, sure, iou=least)
    pairs = by_hand(predicted, reference, sorted(range(len(predicted)), key=lambda n: -sure[n]), least)
    assert {n: best[n] for n in range(len(predicted)) if partners[n] >= 0} == pytest.approx(pairs, abs=1e-9)
    taken = partners[partners >= 0]
    assert len(set(taken.tolist())) == len(taken) == counts.counts[0]
    assert counts.counts.tolist() == [len(taken), len(predicted) - len(taken), len(reference) - len(taken)]


def test_the_surer_prediction_chooses_first():
    reference = np.array([shapely.box(0, 0, 10, 10)], object)
    predicted = np.array([shapely.box(0, 0, 10, 10), shapely.box(0, 0, 10, 9)], object)
    assert match(predicted, reference, np.array([0.1, 0.9]))[1].tolist() == [-1, 0]
    assert match(predicted, reference)[1].tolist() == [0, -1]


def test_ratios_of_nothing_are_not_defined():
    nothing = Matches(np.zeros(3, np.int64))
    assert all(math.isnan(value) for value in (nothing.f1(), nothing.precision(), nothing.recall()))
    missed = Matches(np.array([0, 0, 2]))
    assert (missed.f1(), missed.recall()) == (0, 0)
    assert math.isnan(missed.precision())
