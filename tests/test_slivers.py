from itertools import pairwise

import numpy as np
import rasterio.features
import shapely
import shapely.geometry
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rasterio.features import shapes

from geoseg.legend import ISPRS
from geoseg.polygons import Shaping, assemble, join, polygonize, trace
from geoseg.polygons.slivers import merge_small
from tests.test_polygons import cut, layouts, numbered, outline, rasters


def labelled(classes: np.ndarray) -> np.ndarray:
    """Number of the 4-connected face of each pixel, in the order of first pixels; -1 outside."""
    labels = np.full(classes.shape, -1)
    for start in np.ndindex(classes.shape):
        if labels[start] >= 0 or classes[start] == 0:
            continue
        stack, labels[start] = [start], labels.max() + 1
        while stack:
            row, col = stack.pop()
            for near in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)):
                inside = 0 <= near[0] < classes.shape[0] and 0 <= near[1] < classes.shape[1]
                if inside and labels[near] < 0 and classes[near] == classes[start]:
                    labels[near] = labels[start]
                    stack.append(near)
    return labels


def edges(labels: np.ndarray) -> list[tuple[int, int]]:
    """Labels on both sides of each pixel edge, the border of the raster included as -1."""
    framed = np.pad(labels, 1, constant_values=-1)
    pairs = [*zip(framed[:, :-1].flat, framed[:, 1:].flat, strict=True), *zip(framed[:-1].flat, framed[1:].flat, strict=True)]
    return [(int(a), int(b)) for a, b in pairs if a != b]


def enclosed(labels: np.ndarray, around: int) -> list[set[int]]:
    """Groups of labels that a face shuts in."""
    beside: dict[int, set[int]] = {}
    for a, b in edges(labels):
        beside.setdefault(a, set()).add(b)
        beside.setdefault(b, set()).add(a)
    groups, left = [], set(beside) - {around, -1}
    while left:
        group, stack = set(), [min(left)]
        while stack:
            label = stack.pop()
            if label not in group and label != around:
                group.add(label)
                stack += [] if label == -1 else beside[label]
        left -= group
        if -1 not in group:
            groups.append(group)
    return groups


def slowly_filled(classes: np.ndarray, hole: float) -> np.ndarray:
    """Class raster with the small holes of each face filled, from the smallest on."""
    labels = labelled(classes)
    holes = [
        (int(np.isin(labels, [*group]).sum()), around, group) for around in range(labels.max() + 1) for group in enclosed(labels, around)
    ]
    for size, around, group in sorted(holes, key=lambda hole: hole[0]):
        if size < hole:
            inside = np.isin(labels, [*group])
            classes = np.where(inside, classes[labels == around][0], classes)
    return classes


def slowly_merged(classes: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Class raster after merging the smallest face with its closest neighbour, again and again."""
    alone: set[int] = set()
    while True:
        labels = labelled(classes)
        sizes = np.bincount(labels[labels >= 0], minlength=labels.max() + 1)
        first = {label: int(np.flatnonzero(labels == label)[0]) for label in range(len(sizes))}
        kinds = {label: classes.flat[first[label]] for label in first}
        small = [label for label in first if sizes[label] < least[kinds[label]] and first[label] not in alone]
        if not small:
            return classes
        face = min(small, key=lambda label: (sizes[label], first[label]))
        shared: dict[int, int] = {}
        for a, b in edges(labels):
            for one, other in ((a, b), (b, a)):
                if one == face and other >= 0:
                    shared[other] = shared.get(other, 0) + 1
        if not shared:
            alone.add(first[face])
            continue
        best = max(shared, key=lambda label: (shared[label], sizes[label]))
        if [(shared[label], sizes[label]) for label in shared].count((shared[best], sizes[best])) > 1:
            return np.zeros((0, 0), np.uint8)  # a tie, which the order of numbers decides
        classes = np.where(labels == face, kinds[best], classes)


def drawn(arcs, shape: tuple[int, int]) -> np.ndarray:
    faces = assemble(arcs)
    assert shapely.is_valid(faces.polygons()).all()
    assert shapely.coverage_is_valid(faces.polygons())
    assert (faces.areas_px == faces.pixels).all()
    number = numbered(faces, shape)
    return np.concatenate([[0], faces.class_id]).astype(np.uint8)[number]


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_joined_arcs_do_not_depend_on_blocks(data):
    classes = data.draw(rasters())
    whole = join(trace(cut(classes), classes.shape))
    parts = join(trace(cut(classes, data.draw(layouts(classes.shape))), classes.shape))
    for name in ("points", "offsets", "left", "right", "start", "end", "class_id", "pixels", "nodes"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    ends = np.concatenate([whole.start, whole.end])
    degree = np.bincount(ends[ends >= 0] >> 2, minlength=whole.nodes)
    assert ((degree == 3) | (degree == 4)).all()
    for first, last in pairwise(whole.offsets):
        steps = np.diff(whole.points[first:last].astype(int), axis=0)
        assert ((steps == 0).sum(axis=1) == 1).all(), "every edge is level or upright"
        assert (np.diff(steps[:, 0] == 0)).all(), "every point between is a corner"
    faces, plain = assemble(whole), outline(classes)
    np.testing.assert_array_equal(faces.vertices, plain.vertices)
    np.testing.assert_array_equal(faces.ring_offsets, plain.ring_offsets)


@settings(deadline=None, max_examples=100)
@given(classes=rasters(), hole=st.sampled_from([1.5, 3.0, 6.0, 20.0]))
def test_small_holes_are_filled_as_by_hand(classes, hole):
    arcs = merge_small(join(trace(cut(classes), classes.shape)), np.zeros(256), hole)
    np.testing.assert_array_equal(drawn(arcs, classes.shape), slowly_filled(classes, hole))


@settings(deadline=None, max_examples=100)
@given(classes=rasters(), least=st.sampled_from([2.0, 4.0, 9.0]), spared=st.integers(1, 3))
@example(
    np.array([[1, 2, 3, 2, 3, 1, 2], [3, 2, 3, 3, 3, 2, 3], [3, 2, 0, 3, 2, 2, 3]], np.uint8), 4.0, 1
)  # equal slivers, one of them merged
def test_slivers_are_merged_as_by_hand(classes, least, spared):
    table = np.full(256, least)
    table[spared] = 0
    arcs = merge_small(join(trace(cut(classes), classes.shape)), table, 0)
    found = drawn(arcs, classes.shape)
    assert ((found > 0) == (classes > 0)).all(), "no ground is lost and none gained"
    expected = slowly_merged(classes, table)
    if expected.size:
        np.testing.assert_array_equal(found, expected)
    faces = assemble(arcs)
    number = numbered(faces, classes.shape) - 1
    beside = {face for a, b in edges(number) if a >= 0 and b >= 0 for face in (a, b)}
    small = set(np.flatnonzero(faces.pixels < table[faces.class_id]).tolist())
    assert not small & beside, "what is still too small has no neighbour"


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_slivers_do_not_depend_on_blocks(data):
    classes = data.draw(rasters())
    shaping = Shaping(min_area_m2=data.draw(st.sampled_from([3.0, 8.0])), min_hole_m2=4.0)
    whole = polygonize(cut(classes), classes.shape, shaping)
    parts = polygonize(cut(classes, data.draw(layouts(classes.shape))), classes.shape, shaping)
    np.testing.assert_array_equal(parts.vertices, whole.vertices)
    np.testing.assert_array_equal(parts.class_id, whole.class_id)


def test_confidence_and_centroid_of_a_merged_face_are_its_parts_by_pixels():
    classes = np.array([[1, 1, 1, 2]], np.uint8)
    confidence = np.array([[254, 254, 254, 127]], np.uint8)
    faces = polygonize(cut(classes, None, confidence), classes.shape, Shaping(min_area_m2=2.0))
    assert faces.pixels.tolist() == [4]
    np.testing.assert_allclose(faces.confidence, [(3 + 0.5) / 4])
    np.testing.assert_allclose(faces.centroid, [[2, 0.5]])


@settings(deadline=None, max_examples=100)
@given(classes=rasters())
def test_eight_connected_faces_are_those_of_gdal(classes):
    faces = polygonize(cut(classes), classes.shape, Shaping(connectivity=8))
    found = sorted(zip(faces.class_id.tolist(), faces.areas_px.tolist(), strict=True))
    theirs = [(int(value), shapely.geometry.shape(outline).area) for outline, value in shapes(classes, mask=classes > 0, connectivity=8)]
    assert found == sorted(theirs)
    polygons = faces.polygons()
    assert shapely.is_valid(polygons).all()
    assert sum(area for _, area in found) == (classes > 0).sum()
    burnt = (
        rasterio.features.rasterize(zip(polygons, faces.class_id.tolist(), strict=True), classes.shape)
        if len(faces)
        else np.zeros_like(classes)
    )
    assert (burnt == classes).all()


def test_one_class_can_be_spared():
    classes = np.array([[1, 1, 1, 1], [1, 2, 3, 1], [1, 1, 1, 1]], np.uint8)
    first, second = (c.name for c in ISPRS.classes[1:3])
    kept = polygonize(cut(classes), classes.shape, Shaping(min_area_m2={second: 5}), legend=ISPRS)
    assert sorted(kept.class_id.tolist()) == [1, 2]
    kept = polygonize(cut(classes), classes.shape, Shaping(min_area_m2={first: 5, second: 5}), legend=ISPRS)
    assert kept.class_id.tolist() == [1]
