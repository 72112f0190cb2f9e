"""COCO's own evaluation is the oracle."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.average_precision import AveragePrecision

pytest.importorskip("pycocotools")
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

KEYS = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l")


def coco(images: list[dict], classes: int, sizes: list[list[float]] | None = None, most: int = 100) -> dict[str, float]:
    """The six figures of pycocotools; NaN where it says -1."""
    truths, found = [], []
    for number, image in enumerate(images, 1):
        for (x, y, w, h), class_id, crowd in image["true"]:
            facts = {"bbox": [x, y, w, h], "area": w * h, "category_id": class_id, "iscrowd": int(crowd), "image_id": number}
            truths.append(facts | {"id": len(truths) + 1})
        for (x, y, w, h), class_id, score in image["found"]:
            found.append({"bbox": [x, y, w, h], "category_id": class_id, "score": score, "image_id": number})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": number} for number in range(1, len(images) + 1)],
            "annotations": truths,
            "categories": [{"id": class_id} for class_id in range(1, classes + 1)],
            "info": {},
        }
        truth.createIndex()
        theirs = COCO()
        if found:
            theirs = truth.loadRes(found)
        else:
            theirs.dataset = truth.dataset | {"annotations": []}
            theirs.createIndex()
        judge = COCOeval(truth, theirs, "bbox")
        judge.params.maxDets = [most]
        if sizes:
            judge.params.areaRng = [[0, 1e10], *sizes]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"]  # thresholds, recalls, classes, areas, most

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else math.nan

    whole = precision[:, :, :, 0, -1]
    return {
        "ap": mean(whole),
        "ap50": mean(whole[0]),
        "ap75": mean(whole[5]),
        **{f"ap_{name}": mean(precision[:, :, :, area, -1]) for area, name in enumerate("sml", 1)},
    }


def ours(images: list[dict], classes: int, **options) -> dict[str, float]:
    metric = AveragePrecision(**options)
    for image in images:
        for class_id in range(1, classes + 1):
            found = [(box, score) for box, c, score in image["found"] if c == class_id]
            true = [(box, crowd) for box, c, crowd in image["true"] if c == class_id]
            boxes, truth = (np.array([box for box, _ in each], float).reshape(-1, 4) for each in (found, true))
            crowd = np.array([crowd for _, crowd in true], bool)
            overlaps = np.zeros((len(boxes), len(truth)))
            if len(boxes) and len(truth):
                overlaps = coco_mask.iou(boxes, truth, crowd.astype(np.uint8))
            scores = np.array([score for _, score in found], float)
            metric.add(class_id, scores, boxes[:, 2:].prod(1), truth[:, 2:].prod(1), overlaps, crowd)
    return metric.summary()


@st.composite
def scenes(draw: st.DrawFn) -> list[dict]:
    """Images with instances, and detections most of which are instances moved a little; scores tie."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images = []
    for _ in range(draw(st.integers(1, 4))):
        true, found = [], []
        for _ in range(rng.integers(0, 12)):
            side = np.exp(rng.uniform(1, 5.5, 2)).round()
            box = [*rng.integers(0, 300, 2).tolist(), *side.tolist()]
            class_id = int(rng.integers(1, 3))
            true.append((box, class_id, bool(rng.random() < 0.1)))
            for _ in range(rng.integers(0, 3)):
                moved = np.array(box) + np.append(rng.normal(0, 0.1, 2), rng.normal(0, 0.1, 2)) * np.tile(side, 2)
                moved[2:] = np.maximum(moved[2:], 1)
                found.append((moved.round().tolist(), class_id if rng.random() < 0.9 else 3 - class_id, round(float(rng.random()), 1)))
        for _ in range(rng.integers(0, 5)):
            found.append(([*rng.integers(0, 300, 2).tolist(), *rng.integers(1, 120, 2).tolist()], int(rng.integers(1, 3)), 0.5))
        images.append({"true": true, "found": found})
    return images


@settings(max_examples=60)
@given(scenes())
def test_it_is_cocos(images: list[dict]) -> None:
    expected = coco(images, 2)
    found = ours(images, 2)
    assert tuple(found) == KEYS
    np.testing.assert_allclose([found[key] for key in KEYS], [expected[key] for key in KEYS], rtol=0, atol=1e-9)


@settings(max_examples=30)
@given(scenes(), st.integers(1, 5), st.integers(10, 1000), st.integers(1000, 20000))
def test_other_sizes_and_limits(images: list[dict], most: int, small: int, large: int) -> None:
    bounds = [[0, small], [small, large], [large, 1e10]]
    expected = coco(images, 2, bounds, most)
    found = ours(images, 2, sizes={name: (low, high) for name, (low, high) in zip("sml", bounds, strict=True)}, most=most)
    np.testing.assert_allclose([found[key] for key in KEYS], [expected[key] for key in KEYS], rtol=0, atol=1e-9)


def test_a_perfect_answer_and_none() -> None:
    box = [10, 10, 40, 40]
    image = {"true": [(box, 1, False)], "found": [(box, 1, 0.9)]}
    assert ours([image], 1)["ap"] == pytest.approx(1)
    missed = ours([image | {"found": []}], 1)
    assert missed["ap"] == missed["ap_m"] == 0
    assert math.isnan(missed["ap_l"])
    assert all(math.isnan(value) for value in AveragePrecision().summary().values())
